from tools.pages import drawings

for file, content in drawings.made().items():
    file.write_text(content, encoding="utf-8", newline="\n")
