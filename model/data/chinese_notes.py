"""Chinese notes from the project's own templates: topics by category, put into randomly drawn sentences.

    python -m model.data.chinese_notes --out FILE [--notes N]

writes a JSONL notes file with hashtags and categories. The same N gives the same notes; no third-party text is used.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from model.count_option import at_least_one
from model.data.corpora import note_line
from model.note import Note, normalise_hashtags
from model.whole_file import whole_file


@dataclass(frozen=True, slots=True)
class Theme:
    """Building blocks for the notes of one category. `things`: subjects, each also a hashtag. `tags`: hashtags of the
    category. `sentences`: text with the slots {thing}, {place}, {number} and {time}."""

    things: Sequence[str]
    tags: Sequence[str]
    sentences: Sequence[str]


PLACES = (
    "家里", "公司附近", "小区楼下", "学校门口", "老城区", "海边", "公园", "地铁站旁边", "阳台", "厨房",
)  # fmt: skip
TIMES = (
    "早上", "周末", "下班后", "睡前", "放假", "昨天", "半夜", "春天", "下雨天", "这个月",
)  # fmt: skip
TITLES = (
    "{thing}，看这一篇就够了", "第一次试{thing}", "{thing}的{number}个小经验", "关于{thing}，说点实话",
    "{time}的{thing}", "{thing}翻车记录", "花了{number}块的{thing}", "新手怎么开始{thing}", "{thing}到底值不值",
    "坚持{thing}{number}天之后",
)  # fmt: skip
OPENINGS = (
    "{time}在{place}，终于有空了。", "先说结论：值得。", "很多人问我，统一回答一下。", "记录一下，免得以后忘了。",
    "朋友推荐了好久。", "踩过坑才敢来写。", "没想到会这么喜欢。", "",
)  # fmt: skip
ENDINGS = (
    "有问题评论区见。", "下次再更新。", "你们还有什么好办法？", "希望对你有用。", "先收藏再说。",
    "不适合所有人，量力而行。", "",
)  # fmt: skip
THEMES: Mapping[str, Theme] = {
    "Food": Theme(
        things=(
            "红烧肉", "番茄炒蛋", "手擀面", "酸菜鱼", "蛋挞", "凉拌黄瓜", "火锅底料", "糖醋排骨", "葱油饼", "冰咖啡",
        ),
        tags=("美食", "家常菜", "下厨房"),
        sentences=(
            "{thing}一定要小火，{number}分钟刚刚好。", "调料只放盐和一点糖。", "食材在{place}买的，不到{number}块。",
            "盐最后放，不然会老。", "一盘很快就吃光了。", "上次火太大，糊了锅底。",
        ),
    ),
    "Travel": Theme(
        things=(
            "大理", "泉州古城", "川西自驾", "海岛浮潜", "西安城墙", "青旅", "绿皮火车", "雪山徒步", "古镇夜景",
            "机场过夜",
        ),
        tags=("旅行", "旅游攻略", "周末去哪儿"),
        sentences=(
            "{thing}人不多，{time}去最好。", "门票{number}块，提前预约。", "住在巷子里，安静也便宜。",
            "带一件外套，晚上很冷。", "本地人带我们走了小路。", "行李越少越好。",
        ),
    ),
    "Pets": Theme(
        things=(
            "猫咪剪指甲", "狗狗洗澡", "猫砂", "小狗定点上厕所", "兔子换毛", "鹦鹉说话", "仓鼠笼子", "流浪猫", "猫粮",
            "遛狗",
        ),
        tags=("宠物", "养猫日常", "铲屎官"),
        sentences=(
            "它一开始很怕，慢慢就习惯了。", "先给一点零食。", "{thing}要有耐心，大概{number}天。",
            "医生说不用担心。", "每天{time}它都在门口等我。", "千万不要骂它。",
        ),
    ),
    "Fashion": Theme(
        things=(
            "小个子穿搭", "通勤西装", "旧衣改造", "帆布鞋", "羊毛大衣", "牛仔裤", "围巾系法", "衬衫搭配",
            "基础款T恤", "帽子",
        ),
        tags=("穿搭", "时尚", "每日穿搭"),
        sentences=(
            "{thing}显高，颜色要统一。", "料子比牌子重要。", "{number}块就能穿一季。", "{time}穿也不热。",
            "肩线对了就不会错。",
        ),
    ),
    "Beauty": Theme(
        things=(
            "敏感肌护肤", "口红试色", "新手眼妆", "防晒霜", "卸妆油", "底妆持久", "护手霜", "修眉", "淡妆", "面膜",
        ),
        tags=("美妆", "护肤", "变美"),
        sentences=(
            "{thing}少量多次才自然。", "先在手腕上试一下。", "{number}小时没有脱妆。", "别叠太多，皮肤会累。",
            "预算{number}块以内。",
        ),
    ),
    "Fitness": Theme(
        things=(
            "深蹲", "晨跑", "减脂餐", "瑜伽", "跳绳", "俯卧撑", "拉伸", "游泳换气", "骑车通勤", "核心训练",
        ),
        tags=("健身", "运动打卡", "自律"),
        sentences=(
            "每天{number}分钟，{time}做。", "动作慢一点，膝盖不要超过脚尖。", "前{number}天最难。",
            "{thing}之后一定要拉伸。", "体重没变，腰围小了。",
        ),
    ),
    "Home": Theme(
        things=(
            "出租屋改造", "厨房收纳", "阳台花园", "旧柜子翻新", "小户型书房", "窗帘选择", "衣柜整理", "扫地机器人",
            "除湿", "台灯",
        ),
        tags=("家居", "收纳", "租房改造"),
        sentences=(
            "{thing}只花了{number}块。", "先量尺寸再下单。", "插座一定要多留。", "{time}开始动手，一天就好。",
            "东西少了，{place}也大了。",
        ),
    ),
    "Parenting": Theme(
        things=(
            "宝宝辅食", "哄睡", "绘本阅读", "幼儿园面试", "亲子手工", "孩子不吃饭", "学前识字", "带娃旅行",
            "陪写作业", "分床睡",
        ),
        tags=("育儿", "亲子", "带娃日常"),
        sentences=(
            "孩子{number}岁开始喜欢。", "不要催，他有自己的节奏。", "{time}讲一个故事就睡。",
            "爸爸负责{thing}，我休息。", "老师说多鼓励。",
        ),
    ),
    "Study": Theme(
        things=(
            "考研英语", "背单词", "错题本", "图书馆自习", "高数复习", "四级听力", "番茄钟", "论文开题", "做笔记",
            "备考计划",
        ),
        tags=("学习", "学习打卡", "考研"),
        sentences=(
            "每天{number}页，不多不少。", "{time}脑子最清楚。", "错的原因比答案重要。", "{thing}最怕三天打鱼。",
            "手机放在{place}。",
        ),
    ),
    "Tech": Theme(
        things=(
            "手机内存清理", "机械键盘", "备份照片", "路由器设置", "二手电脑", "降噪耳机", "平板做笔记", "自动化脚本",
            "旧手机", "固态硬盘",
        ),
        tags=("数码", "科技", "好物分享"),
        sentences=(
            "{thing}比想的简单，{number}分钟搞定。", "先备份，再动手。", "参数看看就好，手感更重要。",
            "用了{number}个月，没出问题。", "{number}块以内的首选。",
        ),
    ),
    "Photography": Theme(
        things=(
            "手机拍夜景", "人像构图", "胶片相机", "逆光拍照", "街拍", "修图调色", "拍美食", "星空", "三脚架",
            "黑白照片",
        ),
        tags=("摄影", "拍照技巧", "手机摄影"),
        sentences=(
            "光线比相机重要。", "{time}的光最软。", "{thing}先对焦再调亮度。", "拍{number}张，留一张。",
            "背景越干净越好。",
        ),
    ),
    "Reading": Theme(
        things=(
            "悬疑小说", "历史书", "睡前读书", "二手书店", "读书笔记", "散文", "科幻小说", "传记", "电子书", "诗集",
        ),
        tags=("读书", "书单", "阅读"),
        sentences=(
            "{thing}读到{time}停不下来。", "第{number}页开始才好看。", "作者的句子很短，很准。",
            "借来的书读得更快。",
        ),
    ),
    "Music": Theme(
        things=(
            "学吉他", "民谣", "演唱会", "钢琴考级", "电子琴", "老歌翻唱", "乐队排练", "黑胶唱片", "合唱团",
            "耳机听歌",
        ),
        tags=("音乐", "翻唱", "听歌"),
        sentences=(
            "{thing}前{number}周手指最疼。", "副歌一出来全场都在唱。", "{time}循环了一整天。",
            "节拍器是最好的老师。",
        ),
    ),
    "Film": Theme(
        things=(
            "悬疑片", "国产动画", "追剧", "老电影", "纪录片", "电影结尾", "配角演技", "科幻片", "喜剧片", "影院",
        ),
        tags=("电影", "影视剪辑", "追剧日常"),
        sentences=(
            "{thing}前{number}分钟就抓住人。", "结尾没猜到。", "看完在{place}走了一圈。", "配乐加分，台词一般。",
            "不剧透，自己去看。",
        ),
    ),
    "Gaming": Theme(
        things=(
            "排位上分", "种田游戏", "手游抽卡", "单机通关", "开黑", "新手英雄", "解谜游戏", "联机", "像素游戏",
            "打本",
        ),
        tags=("游戏", "手游", "王者日常"),
        sentences=(
            "{thing}别急，先看地图。", "打到第{number}关才懂。", "{time}和朋友一起打。",
            "输了{number}把，换个打法就赢了。", "抽了{number}次才出。",
        ),
    ),
    "Crafts": Theme(
        things=("钩针", "羊毛毡", "手账", "木工小凳", "陶艺", "编织围巾", "纸艺", "刺绣", "滴胶", "旧物改造"),
        tags=("手工", "手作", "治愈"),
        sentences=(
            "{thing}材料{number}块。", "线选粗一点，新手好上手。", "拆了{number}次，终于对了。",
            "{time}安静做一会儿，很解压。",
        ),
    ),
    "Gardening": Theme(
        things=("多肉", "月季", "阳台种菜", "番茄苗", "绿萝", "浇水", "换盆", "草莓", "驱虫", "薄荷"),
        tags=("园艺", "养花", "阳台种植"),
        sentences=(
            "{thing}怕水多，{number}天浇一次。", "叶子黄了先看根。", "放在{place}，晒半天就够。",
            "{time}施肥，薄肥勤施。",
        ),
    ),
    "Career": Theme(
        things=("面试", "裸辞", "简历修改", "加班", "转行", "周报", "副业", "实习", "职场沟通", "远程办公"),
        tags=("职场", "打工人", "求职"),
        sentences=(
            "{thing}投了{number}份，回了两份。", "先做再问，别空着手。", "领导说慢慢来。",
            "{time}不看消息，效率更高。", "合同看三遍再签。",
        ),
    ),
    "Health": Theme(
        things=("失眠", "颈椎", "早睡", "体检", "护眼", "喝水", "感冒", "胃不舒服", "戒糖", "泡脚"),
        tags=("健康", "养生", "健康生活"),
        sentences=(
            "{thing}，医生让我先改作息。", "坚持{number}天，好多了。", "{time}不碰手机。",
            "不舒服就去医院，别硬扛。",
        ),
    ),
    "Outdoors": Theme(
        things=("露营", "爬山", "钓鱼", "溯溪", "骑行", "观鸟", "帐篷", "野餐", "赶海", "徒步"),
        tags=("户外", "户外生活", "亲近自然"),
        sentences=(
            "{thing}带{number}升水就够。", "{time}出发，避开人。", "垃圾一定要带走。", "天气变了就下山。",
            "{place}出发，{number}公里。",
        ),
    ),
}  # fmt: skip
"""Themes by category, one for each of `DEFAULT_CATEGORIES`."""


def chinese_notes(seed: int = 0) -> Iterator[Note]:
    """Yield distinct notes without ids, without end."""
    rng = random.Random(seed)
    categories = list(THEMES)
    seen: set[str] = set()
    while True:
        category = rng.choice(categories)
        note = draw_note(rng, category, THEMES[category])
        if note.title + note.content not in seen:
            seen.add(note.title + note.content)
            yield note


def draw_note(rng: random.Random, category: str, theme: Theme) -> Note:
    """Draw one note on a theme: a title, one to three sentences, and up to three hashtags."""
    slots = {
        "thing": rng.choice(theme.things),
        "place": rng.choice(PLACES),
        "time": rng.choice(TIMES),
        "number": str(rng.choice((3, 5, 7, 10, 15, 20, 30, 50, 100))),
    }
    sentences = rng.sample(theme.sentences, rng.randint(1, 3))
    content = "".join([rng.choice(OPENINGS), *sentences, rng.choice(ENDINGS)]).format(**slots)
    tags = [slots["thing"], *rng.sample(theme.tags, rng.randint(1, 2))]
    return Note(
        title=rng.choice(TITLES).format(**slots), content=content, hashtags=normalise_hashtags(tags), category=category
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Generate Chinese notes from templates.")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument(
        "--notes", type=at_least_one, default=2000, help="maximum number of notes (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    lines = [note_line(f"zh-{n}", note) for n, note in enumerate(islice(chinese_notes(), options.notes), 1)]
    with whole_file(options.out) as file:
        file.write("".join(lines).encode())
    print(f"{options.out}: {len(lines):,} notes")


if __name__ == "__main__":
    main()
