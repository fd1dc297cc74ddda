"""What a conversation is about: ShareGPT's free-text tags, and a small keyword lexicon (paper, Figure 2)."""

import re

# topic: what ShareGPT's tags call it | words of questions about it. On equal hits the first wins.
LEXICON = """
computer: computer program software code coding internet web
    | 代码 编程 函数 算法 软件 数据库 python java sql html 网站 服务器 计算机 linux 接口
mathematics: math statistic | 数学 计算 方程 求解 概率 几何 平方 除以 等于多少 质数 三角形 微积分
natural science: natural science physics chemistry biology astronomy
    | 物理 化学 生物 元素 动物 植物 细胞 行星 太阳系 能量 分子 心脏 进化 生活在 昆虫
medicine: medic health psycholog nutrition fitness
    | 健康 疾病 症状 医生 治疗 药 疼 睡眠 心理 焦虑 抑郁 减肥 锻炼
finance: financ business econom market management account
    | 公司 商业 市场 营销 投资 股票 金融 经济 客户 产品 品牌
education: educat academ learning teaching school | 学习 学生 老师 考试 课程 教学 大学 论文 作业 教育
language: language linguist translat grammar
    | 翻译 语法 句子 同义词 反义词 单词 造句 英语 改写 标点 成语 语言 动词
literature: literature writing poet fiction creative
    | 诗 小说 故事 作者 散文 写一篇 作文 文学 剧本 谁写的 隐喻 段落
history: histor | 历史 朝代 战争 革命 皇帝 古代 世纪
geography: geograph travel touris | 首都 国家 城市 哪个洲 大洲 旅行 旅游 景点 地理 河流 山脉 海洋
law and politics: law legal politic government sociolog social | 法律 合同 政府 政治 政策 选举 权利 社会 总统
philosophy: philosoph religio ethic | 哲学 宗教 道德 伦理 上帝
art: art music film movie design entertain | 音乐 歌 电影 绘画 艺术 设计 演员 颜色 舞蹈 乐器 摄影
games and sport: game sport gaming | 游戏 足球 篮球 运动员 比赛 角色扮演 玩家 国际象棋
food: food cook recipe | 食谱 做菜 烹饪 美食 食物 晚餐 蛋糕 水果 咖啡
technology: technolog engineer electronic mechanic artificial
    | 技术 人工智能 机器学习 手机 工程 机器人 是用什么做
work: career job work human | 简历 面试 工作 职业 求职 同事 邮件 会议 老板
daily life: life daily family relation chat | 生活 家庭 朋友 父母 礼物 孩子 恋爱 天气 你好 谢谢 再见 早上好
"""
TOPICS = re.findall(r"^([a-z ]+):([^|]+)\|(.+)$", LEXICON.replace("\n    ", " "), re.M)
TAGS = {topic: re.compile(rf"\b(?:{'|'.join(tags.split())})", re.I) for topic, tags, _ in TOPICS}
WORDS = {topic: re.compile("|".join(words.split()), re.I) for topic, _, words in TOPICS}


def normalise(tag: str) -> str:
    """ShareGPT's free-text tag as a topic: "Finance, Business: \\n\\n" is "finance"; "" where it fits none.

    The first of several names counts; the order of LEXICON settles a name that fits two.
    """
    for name in re.split(r"[,，;:：/\n]+", tag):
        for topic, pattern in TAGS.items():
            if pattern.search(name):
                return topic
    return ""


def categorise(messages: list[dict], tag: str = "") -> str:
    """The topic of a conversation: what its tag says, else the one whose words its questions hold most.

    "other" where nothing fits. The lexicon is self-written and its accuracy not measured: it is meant for the
    shape of a bar chart, not for a single row.
    """
    if topic := normalise(tag):
        return topic
    asked = "\n".join(message["content"] for message in messages if message["role"] == "user")
    hits = {topic: len(pattern.findall(asked)) for topic, pattern in WORDS.items()}
    best = max(hits, key=hits.get)
    return best if hits[best] else "other"
