"""Solutions to notebook 00."""

# 00.1: conversations with several rounds (all in ShareGPT) over all conversations
multi_round_share = 35_333 / 176_678

# 00.2: the published command names two projections of the attention; router and experts stay frozen
trained = {"q_proj", "v_proj"}

# 00.3: three epochs, and one step for every 2 x 4 conversations
steps = 3 * 176_678 / (2 * 4)

# 00.4: conversations a second over steps a second
batch = round(1.968 / 0.062)

ANSWERS = {"00.1": multi_round_share, "00.2": trained, "00.3": steps, "00.4": batch}
