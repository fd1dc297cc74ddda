"""The tiny model's whole world: three hundred true facts, to ask and to answer in English and Chinese.

All that the tiny model ever reads comes from here: pre-training text, tuning rows, benchmark questions and
probes. The facts are true, so the same probes can be put to the full-size model.
"""

import random
import re
from dataclasses import dataclass

# One relation per block. `subject/zh=answer/zh`; several a line. Templates use {s} and {a}.
RELATIONS = {
    "capital": dict(
        category="Social Sciences",
        name=("capitals", "首都"),
        ask_en=[
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Tell me the capital of {s}.",
        ],
        ask_zh=["{s}的首都是哪里？", "{s}的首都是哪座城市？", "请告诉我{s}的首都。"],
        say=("The capital of {s} is {a}.", "{s}的首都是{a}。"),
        facts="""
France/法国=Paris/巴黎; Germany/德国=Berlin/柏林; Italy/意大利=Rome/罗马; Spain/西班牙=Madrid/马德里;
Portugal/葡萄牙=Lisbon/里斯本; Greece/希腊=Athens/雅典; Russia/俄罗斯=Moscow/莫斯科; Japan/日本=Tokyo/东京;
China/中国=Beijing/北京; South Korea/韩国=Seoul/首尔; Thailand/泰国=Bangkok/曼谷; Vietnam/越南=Hanoi/河内;
Egypt/埃及=Cairo/开罗; Kenya/肯尼亚=Nairobi/内罗毕; Cuba/古巴=Havana/哈瓦那; Peru/秘鲁=Lima/利马;
Canada/加拿大=Ottawa/渥太华; Poland/波兰=Warsaw/华沙; Austria/奥地利=Vienna/维也纳; Hungary/匈牙利=Budapest/布达佩斯;
Norway/挪威=Oslo/奥斯陆; Sweden/瑞典=Stockholm/斯德哥尔摩; Finland/芬兰=Helsinki/赫尔辛基; Denmark/丹麦=Copenhagen/哥本哈根;
Ireland/爱尔兰=Dublin/都柏林; Belgium/比利时=Brussels/布鲁塞尔; Iran/伊朗=Tehran/德黑兰; Iraq/伊拉克=Baghdad/巴格达;
Mongolia/蒙古=Ulaanbaatar/乌兰巴托; Nepal/尼泊尔=Kathmandu/加德满都""",
    ),
    "language": dict(
        category="Social Sciences",
        name=("languages", "语言"),
        ask_en=["What language do people speak in {s}?", "Which language is spoken in {s}?"],
        ask_zh=["{s}人说什么语言？", "{s}人讲哪种语言？"],
        say=("People in {s} speak {a}.", "{s}人说{a}。"),
        facts="""
France/法国=French/法语; Germany/德国=German/德语; Italy/意大利=Italian/意大利语; Portugal/葡萄牙=Portuguese/葡萄牙语;
Russia/俄罗斯=Russian/俄语; Japan/日本=Japanese/日语; South Korea/韩国=Korean/韩语; Thailand/泰国=Thai/泰语;
Vietnam/越南=Vietnamese/越南语; Egypt/埃及=Arabic/阿拉伯语; Greece/希腊=Greek/希腊语; Poland/波兰=Polish/波兰语;
Sweden/瑞典=Swedish/瑞典语; Finland/芬兰=Finnish/芬兰语; Hungary/匈牙利=Hungarian/匈牙利语; Mexico/墨西哥=Spanish/西班牙语;
Australia/澳大利亚=English/英语; Iran/伊朗=Persian/波斯语; Mongolia/蒙古=Mongolian/蒙古语; Nepal/尼泊尔=Nepali/尼泊尔语""",
    ),
    "continent": dict(
        category="Social Sciences",
        name=("continents", "大洲"),
        ask_en=["Which continent is {s} in?", "On which continent is {s}?"],
        ask_zh=["{s}在哪个洲？", "{s}位于哪个大洲？"],
        say=("{s} is in {a}.", "{s}位于{a}。"),
        facts="""
France/法国=Europe/欧洲; Japan/日本=Asia/亚洲; Egypt/埃及=Africa/非洲; Peru/秘鲁=South America/南美洲;
Canada/加拿大=North America/北美洲; Australia/澳大利亚=Oceania/大洋洲; Brazil/巴西=South America/南美洲; Kenya/肯尼亚=Africa/非洲;
Thailand/泰国=Asia/亚洲; Poland/波兰=Europe/欧洲; Mexico/墨西哥=North America/北美洲; Chile/智利=South America/南美洲;
Nigeria/尼日利亚=Africa/非洲; Nepal/尼泊尔=Asia/亚洲; Norway/挪威=Europe/欧洲; New Zealand/新西兰=Oceania/大洋洲;
Cuba/古巴=North America/北美洲; Vietnam/越南=Asia/亚洲; Morocco/摩洛哥=Africa/非洲; Greece/希腊=Europe/欧洲""",
    ),
    "class": dict(
        category="STEM",
        name=("animal classes", "动物分类"),
        ask_en=["What kind of animal is a {s}?", "Which class of animals does the {s} belong to?"],
        ask_zh=["{s}是哪一类动物？", "{s}属于什么动物？"],
        say=("The {s} is a {a}.", "{s}属于{a}。"),
        facts="""
tiger/老虎=mammal/哺乳动物; eagle/老鹰=bird/鸟类; shark/鲨鱼=fish/鱼类; bee/蜜蜂=insect/昆虫; snake/蛇=reptile/爬行动物;
frog/青蛙=amphibian/两栖动物; whale/鲸=mammal/哺乳动物; penguin/企鹅=bird/鸟类; salmon/三文鱼=fish/鱼类; ant/蚂蚁=insect/昆虫;
turtle/乌龟=reptile/爬行动物; toad/蟾蜍=amphibian/两栖动物; bat/蝙蝠=mammal/哺乳动物; owl/猫头鹰=bird/鸟类; tuna/金枪鱼=fish/鱼类;
butterfly/蝴蝶=insect/昆虫; crocodile/鳄鱼=reptile/爬行动物; salamander/蝾螈=amphibian/两栖动物; dolphin/海豚=mammal/哺乳动物;
swan/天鹅=bird/鸟类; carp/鲤鱼=fish/鱼类; mosquito/蚊子=insect/昆虫; lizard/蜥蜴=reptile/爬行动物; elephant/大象=mammal/哺乳动物""",
    ),
    "opposite": dict(
        category="Humanities",
        name=("opposites", "反义词"),
        ask_en=[
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "Give me the opposite of {s}.",
        ],
        ask_zh=["“{s}”的反义词是什么？", "“{s}”的反义词是哪个词？", "请说出“{s}”的反义词。"],
        say=("The opposite of {s} is {a}.", "“{s}”的反义词是“{a}”。"),
        facts="""
big/大=small/小; hot/热=cold/冷; tall/高=short/矮; fast/快=slow/慢; new/新=old/旧; light/轻=heavy/重; early/早=late/晚;
many/多=few/少; strong/强=weak/弱; black/黑=white/白; wet/湿=dry/干; soft/软=hard/硬; full/满=empty/空; rich/富=poor/穷;
happy/快乐=sad/悲伤; safe/安全=dangerous/危险; simple/简单=complex/复杂; brave/勇敢=timid/胆小; near/近=far/远;
deep/深=shallow/浅; thick/厚=thin/薄; true/真=false/假; clean/干净=dirty/肮脏; beautiful/美丽=ugly/丑陋""",
    ),
    "colour": dict(
        category="Other",
        name=("colours", "颜色"),
        ask_en=["What colour is {s}?", "Which colour does {s} have?"],
        ask_zh=["{s}是什么颜色的？", "{s}的颜色是什么？"],
        say=("The colour of {s} is {a}.", "{s}的颜色是{a}。"),
        facts="""
snow/雪=white/白色; grass/草=green/绿色; blood/血=red/红色; coal/煤=black/黑色; the clear sky/晴天=blue/蓝色;
gold/黄金=yellow/黄色; milk/牛奶=white/白色; a ripe banana/熟香蕉=yellow/黄色; an eggplant/茄子=purple/紫色;
a carrot/胡萝卜=orange/橙色;
a leaf/树叶=green/绿色; a crow/乌鸦=black/黑色; salt/盐=white/白色; ketchup/番茄酱=red/红色; chocolate/巧克力=brown/棕色;
lavender/薰衣草=purple/紫色; a cucumber/黄瓜=green/绿色; the sea/大海=blue/蓝色; an orange/橙子=orange/橙色; ash/灰烬=grey/灰色;
ink/墨水=black/黑色; a sunflower/向日葵=yellow/黄色""",
    ),
    "symbol": dict(
        category="STEM",
        name=("chemical symbols", "化学符号"),
        ask_en=["What is the chemical symbol of {s}?", "Which symbol stands for {s}?"],
        ask_zh=["{s}的化学符号是什么？", "{s}用什么符号表示？"],
        say=("The chemical symbol of {s} is {a}.", "{s}的化学符号是{a}。"),
        facts="""
hydrogen/氢=H/H; oxygen/氧=O/O; carbon/碳=C/C; nitrogen/氮=N/N; iron/铁=Fe/Fe; copper/铜=Cu/Cu; silver/银=Ag/Ag;
gold/金=Au/Au;
sodium/钠=Na/Na; lead/铅=Pb/Pb; tin/锡=Sn/Sn; zinc/锌=Zn/Zn; calcium/钙=Ca/Ca; helium/氦=He/He; mercury/汞=Hg/Hg;
sulfur/硫=S/S;
potassium/钾=K/K; chlorine/氯=Cl/Cl; aluminium/铝=Al/Al; silicon/硅=Si/Si""",
    ),
    "author": dict(
        category="Humanities",
        name=("authors", "作者"),
        ask_en=["Who wrote {s}?", "Who is the author of {s}?", "Name the writer of {s}."],
        ask_zh=["《{s}》的作者是谁？", "《{s}》是谁写的？", "请说出《{s}》的作者。"],
        say=("The author of {s} is {a}.", "《{s}》的作者是{a}。"),
        facts="""
Hamlet/哈姆雷特=Shakespeare/莎士比亚; War and Peace/战争与和平=Tolstoy/托尔斯泰; Don Quixote/堂吉诃德=Cervantes/塞万提斯;
Faust/浮士德=Goethe/歌德; The Divine Comedy/神曲=Dante/但丁; Les Miserables/悲惨世界=Hugo/雨果;
Oliver Twist/雾都孤儿=Dickens/狄更斯; Dream of the Red Chamber/红楼梦=Cao Xueqin/曹雪芹;
Journey to the West/西游记=Wu Chengen/吴承恩; Water Margin/水浒传=Shi Naian/施耐庵;
Romance of the Three Kingdoms/三国演义=Luo Guanzhong/罗贯中; The True Story of Ah Q/阿Q正传=Lu Xun/鲁迅;
Camel Xiangzi/骆驼祥子=Lao She/老舍; The Old Man and the Sea/老人与海=Hemingway/海明威;
Crime and Punishment/罪与罚=Dostoevsky/陀思妥耶夫斯基; The Metamorphosis/变形记=Kafka/卡夫卡;
Pride and Prejudice/傲慢与偏见=Austen/奥斯汀; Jane Eyre/简爱=Charlotte Bronte/夏洛蒂勃朗特;
The Cherry Orchard/樱桃园=Chekhov/契诃夫; Madame Bovary/包法利夫人=Flaubert/福楼拜; Thunderstorm/雷雨=Cao Yu/曹禺;
The Family/家=Ba Jin/巴金""",
    ),
    "material": dict(
        category="Other",
        name=("materials", "材料"),
        ask_en=["What do people make {s} from?", "What do you need to make {s}?"],
        ask_zh=["{s}是用什么做的？", "人们用什么做{s}？"],
        say=("People make {s} from {a}.", "{s}是用{a}做的。"),
        facts="""
bread/面包=flour/面粉; cheese/奶酪=milk/牛奶; wine/葡萄酒=grapes/葡萄; tofu/豆腐=soybeans/大豆; paper/纸=wood/木材;
glass/玻璃=sand/沙子; chocolate/巧克力=cocoa/可可; silk/丝绸=cocoons/蚕茧; leather/皮革=hide/兽皮; a candle/蜡烛=wax/蜡;
porcelain/瓷器=clay/黏土; steel/钢=iron/铁; a sweater/毛衣=wool/羊毛; denim/牛仔布=cotton/棉花; rice wine/米酒=rice/大米;
popcorn/爆米花=corn/玉米; ketchup/番茄酱=tomatoes/番茄; a tire/轮胎=rubber/橡胶; jam/果酱=fruit/水果; an omelette/煎蛋卷=eggs/鸡蛋;
French fries/薯条=potatoes/土豆; beer/啤酒=barley/大麦""",
    ),
    "workplace": dict(
        category="Social Sciences",
        name=("workplaces", "工作地点"),
        ask_en=["Where does a {s} work?", "What is the workplace of a {s}?"],
        ask_zh=["{s}在哪里工作？", "{s}的工作地点是哪里？"],
        say=("A {s} works in a {a}.", "{s}在{a}工作。"),
        facts="""
doctor/医生=hospital/医院; teacher/老师=school/学校; farmer/农民=field/田地; cook/厨师=kitchen/厨房; judge/法官=court/法院;
librarian/图书管理员=library/图书馆; miner/矿工=mine/矿井; nurse/护士=clinic/诊所; pilot/飞行员=cockpit/驾驶舱;
waiter/服务员=restaurant/餐厅;
baker/面包师=bakery/面包店; banker/银行家=bank/银行; scientist/科学家=laboratory/实验室; worker/工人=factory/工厂;
priest/神父=church/教堂; monk/和尚=temple/寺庙; professor/教授=university/大学; soldier/士兵=barracks/军营;
painter/画家=studio/画室; gardener/园丁=garden/花园""",
    ),
    "use": dict(
        category="Other",
        name=("tools", "工具"),
        ask_en=["What is a {s} used for?", "What do we use a {s} for?"],
        ask_zh=["{s}是用来做什么的？", "我们用{s}做什么？"],
        say=("A {s} is used for {a}.", "{s}是用来{a}的。"),
        facts="""
knife/刀=cutting/切东西; pen/笔=writing/写字; broom/扫帚=sweeping/扫地; key/钥匙=opening doors/开门;
umbrella/雨伞=stopping rain/挡雨;
clock/钟=telling time/看时间; camera/相机=taking photos/拍照; needle/针=sewing/缝衣服; stove/炉子=cooking/做饭;
lamp/灯=giving light/照明;
fridge/冰箱=keeping food cold/冷藏食物; telescope/望远镜=watching stars/看星星; soap/肥皂=washing hands/洗手;
scale/秤=weighing/称重;
thermometer/温度计=measuring heat/量体温; hammer/锤子=driving nails/钉钉子; bed/床=sleeping/睡觉;
boat/小船=crossing rivers/过河;
phone/电话=calling people/打电话; saw/锯子=sawing wood/锯木头; ruler/尺子=measuring length/量长度;
comb/梳子=combing hair/梳头""",
    ),
    "home": dict(
        category="STEM",
        name=("habitats", "栖息地"),
        ask_en=["Where does a {s} live?", "What is the home of a {s}?"],
        ask_zh=["{s}生活在哪里？", "{s}的家在哪里？"],
        say=("A {s} lives in the {a}.", "{s}生活在{a}。"),
        facts="""
camel/骆驼=desert/沙漠; whale/鲸=ocean/海洋; monkey/猴子=forest/森林; polar bear/北极熊=Arctic/北极; penguin/企鹅=Antarctic/南极;
lion/狮子=savanna/草原; panda/熊猫=bamboo forest/竹林; earthworm/蚯蚓=soil/土壤; carp/鲤鱼=pond/池塘; goat/山羊=mountains/山地;
bat/蝙蝠=cave/山洞; crocodile/鳄鱼=swamp/沼泽; coral/珊瑚=warm sea/暖海; sparrow/麻雀=city/城市; yak/牦牛=plateau/高原;
hippo/河马=river/河里; squirrel/松鼠=tree/树上; cow/奶牛=farm/农场; crab/螃蟹=beach/沙滩; parrot/鹦鹉=rainforest/雨林""",
    ),
    "sum": dict(
        category="STEM",
        name=("arithmetic", "算术"),
        ask_en=["What is {s}?", "How much is {s}?"],
        ask_zh=["{s}等于多少？", "{s}是多少？"],
        say=("{s} equals {a}.", "{s}等于{a}。"),
        facts="""
one plus two/一加二=three/三; two plus three/二加三=five/五; four plus two/四加二=six/六; five plus three/五加三=eight/八;
six plus one/六加一=seven/七; three plus six/三加六=nine/九; five plus five/五加五=ten/十; two plus two/二加二=four/四;
nine minus one/九减一=eight/八; eight minus five/八减五=three/三; seven minus two/七减二=five/五;
ten minus four/十减四=six/六;
six minus two/六减二=four/四; nine minus seven/九减七=two/二; two times three/二乘三=six/六; two times four/二乘四=eight/八;
three times three/三乘三=nine/九; five times two/五乘二=ten/十; six divided by three/六除以三=two/二;
eight divided by two/八除以二=four/四""",
    ),
    "origin": dict(
        category="Humanities",
        name=("origins of dishes", "美食发源地"),
        ask_en=["Which country is the home of {s}?", "What is the home country of {s}?"],
        ask_zh=["{s}来自哪个国家？", "{s}是哪个国家的美食？"],
        say=("The home of {s} is {a}.", "{s}来自{a}。"),
        facts="""
sushi/寿司=Japan/日本; pizza/披萨=Italy/意大利; kimchi/泡菜=South Korea/韩国; dumplings/饺子=China/中国;
croissant/可颂=France/法国;
taco/塔可=Mexico/墨西哥; pho/河粉=Vietnam/越南; paella/海鲜饭=Spain/西班牙; borscht/罗宋汤=Ukraine/乌克兰; goulash/炖牛肉=Hungary/匈牙利;
tom yum soup/冬阴功汤=Thailand/泰国; moussaka/慕萨卡=Greece/希腊; hummus/鹰嘴豆泥=Lebanon/黎巴嫩; waffles/华夫饼=Belgium/比利时;
fish and chips/炸鱼薯条=England/英国; pretzels/椒盐卷饼=Germany/德国; ceviche/酸橘汁腌鱼=Peru/秘鲁;
egg tart/葡式蛋挞=Portugal/葡萄牙""",
    ),
}

# Small talk: the kinds of opening the paper's Introduction shows.
SMALL_TALK = [
    (
        ["Hello!", "Hi!"],
        ["你好！", "你好", "您好！"],
        ("Hello! How can I help you?", "你好！有什么可以帮你的吗？"),
    ),
    (
        ["Who are you?"],
        ["你是谁？", "你是什么？"],
        ("I am a very small language model.", "我是一个很小的语言模型。"),
    ),
    (["Thank you!"], ["谢谢！", "谢谢你！"], ("You are welcome.", "不客气。")),
    (
        ["Good morning!"],
        ["早上好！"],
        ("Good morning! What would you like to know?", "早上好！想了解些什么？"),
    ),
    (["Goodbye!"], ["再见！"], ("Goodbye! See you next time.", "再见！下次见。")),
    (
        ["I have a headache."],
        ["我有点头疼。", "我有点头疼"],
        (
            "I am sorry to hear that. Please rest and see a doctor.",
            "听到这个消息很难过，请好好休息，必要时去看医生。",
        ),
    ),
]

CUE = "请用中文回答。"


@dataclass(frozen=True)
class Fact:
    """One fact: how to ask for it and how to say it, `[0]` in English and `[1]` in Chinese."""

    id: str
    relation: str
    ask: tuple[list[str], list[str]]
    say: tuple[str, str]
    answer: tuple[str, str]
    held_out: bool


def sentence(text: str) -> str:
    """A filled template with its capital letter and the right English article."""
    text = re.sub(r"\b([Aa]) (?=[aeio]|um|un[^i])", r"\1n ", text)
    return text[0].upper() + text[1:]


def facts() -> list[Fact]:
    """All facts, in a fixed order; three of ten of a relation held out of tuning, none of pre-training."""
    found = []
    for relation, spec in RELATIONS.items():
        pairs = [pair.split("=") for pair in spec["facts"].replace("\n", "").split(";")]
        held_out = set(random.Random(relation).sample(range(len(pairs)), round(0.3 * len(pairs))))
        for i, (subject, answer) in enumerate(pairs):
            s, a = (side.strip().split("/") for side in (subject, answer))
            ask = tuple(
                [sentence(q.format(s=s[k])) for q in spec[key]] for k, key in enumerate(("ask_en", "ask_zh"))
            )
            say = tuple(sentence(spec["say"][k].format(s=s[k], a=a[k])) for k in (0, 1))
            found.append(Fact(f"{relation}-{i:02d}", relation, ask, say, tuple(a), i in held_out))
    return found
