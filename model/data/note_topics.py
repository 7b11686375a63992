"""Topics by category, forms and voices of generated notes, from which `model.data.generated_notes` draws."""

from __future__ import annotations

TOPICS: dict[str, tuple[str, ...]] = {
    "Food": (
        "sourdough bread", "ramen at home", "a street food market", "vegan burgers", "birthday cake", "iced coffee",
        "dumplings", "meal prep for the week", "a failed souffle", "hot sauce", "matcha", "Sunday roast", "tacos",
        "a tiny noodle shop", "pickling vegetables", "air fryer chicken", "homemade pizza", "bubble tea", "curry",
        "chocolate chip cookies", "breakfast on a budget", "sushi", "barbecue ribs", "school lunch boxes",
        "spicy noodles",
    ),
    "Travel": (
        "a weekend in Lisbon", "a night train", "backpacking in Vietnam", "a road trip through Utah",
        "a lost suitcase", "island hopping in Greece", "a cheap hostel", "a desert camp in Morocco",
        "Tokyo on foot", "a rainy week in Scotland", "an airport delay", "hot springs in Iceland", "solo travel",
        "a safari in Kenya", "a mountain village in Peru", "a cruise", "a bike tour along a river",
        "a guest house in Bali", "a city break in Prague", "beaches of Thailand",
    ),
    "Film and series": (
        "a heist that goes wrong", "a detective with a secret", "a haunted house",
        "a space crew stranded far from home", "two rivals who fall in love", "a war seen by a child",
        "a robot that learns to feel", "a road trip of three sisters", "a boxer's last fight",
        "a king betrayed by his brother", "a school for magic", "a zombie outbreak", "a spy in Berlin",
        "a courtroom drama", "a family Christmas", "a superhero who lost her power", "a samurai seeking revenge",
        "a chef", "a serial killer in a small town", "time travel", "a rock band's rise and fall",
        "a dog that finds its way home", "a pirate treasure", "an alien invasion", "a western town and its sheriff",
        "a prison escape", "an amnesiac assassin", "the ending of a crime series", "an anime finale",
        "a period drama", "a documentary on whales", "a bad sequel",
    ),
    "Games": (
        "a boss fight", "a farming simulator", "ranked matches", "a speedrun",
        "building a castle in a sandbox game", "a new hero in a team battle game", "a horror game at night",
        "a card deck", "a racing game", "a football game", "a lucky loot drop", "mobile game tips",
        "a battle royale win", "a puzzle game", "an old console", "a chess opening", "a tabletop campaign",
        "a shooter's new map", "pixel art games", "a fishing mini game",
    ),
    "Pets": (
        "a cat that opens doors", "a puppy's first walk", "a rescue dog", "a talking parrot", "a hamster cage",
        "an aquarium", "a grumpy old cat", "training a dog to stay", "a horse", "a rabbit that hates carrots",
        "two kittens", "a turtle", "a vet visit", "a dog at the beach", "chickens in the garden",
        "a lost cat found",
    ),
    "Fashion": (
        "a winter coat", "thrift store finds", "wedding guest dresses", "sneakers", "a capsule wardrobe",
        "silver jewellery", "summer hats", "denim jackets", "office outfits", "nail art", "a traditional costume",
        "knitted sweaters", "handbags", "sunglasses", "styling one skirt three ways", "a tailor",
    ),
    "Beauty": (
        "sunscreen", "curly hair", "a simple skin routine", "red lipstick", "a bad haircut", "perfume",
        "face masks", "eyeliner for beginners", "dry skin in winter", "dyeing hair at home", "acne",
        "makeup for a party", "braids",
    ),
    "Fitness": (
        "a first marathon", "yoga for a stiff back", "pull ups", "home workouts", "a swimming lesson", "leg day",
        "running in the rain", "climbing gym", "weight loss after pregnancy", "stretching", "boxing class",
        "cycling to work", "protein shakes", "a sprained ankle", "jump rope",
    ),
    "Sport": (
        "a last minute goal", "a basketball final", "a tennis comeback", "a boxing match", "the Olympics",
        "table tennis", "a cricket match", "a transfer rumour", "figure skating", "a marathon record",
        "motor racing", "a volleyball team", "skateboard tricks", "surfing a big wave", "wrestling",
        "a referee's decision",
    ),
    "Home": (
        "a small kitchen", "painting a bedroom", "moving house", "a bookshelf from old wood", "cleaning tips",
        "a leaking tap", "balcony furniture", "storage boxes", "a cosy reading corner", "a rented flat", "curtains",
        "a robot vacuum", "laundry", "decorating for the holidays", "noisy neighbours",
    ),
    "Garden and countryside": (
        "tomatoes on a balcony", "pruning roses", "compost", "a vegetable patch", "harvest day", "indoor plants",
        "fishing at the pond", "beekeeping", "a tractor", "mushroom picking", "succulents", "snails on the lettuce",
        "life in a village", "planting rice", "raising ducks", "an apple orchard",
    ),
    "Parenting and family": (
        "a toddler's tantrum", "bedtime stories", "a newborn", "school run", "teenagers and phones",
        "a grandmother's advice", "a birthday party", "twins", "packing a hospital bag", "homework",
        "a first day at school", "a father and his daughter", "a mother in law", "siblings", "a family reunion",
        "adoption",
    ),
    "Relationships": (
        "a first date", "a long distance couple", "a break up", "a surprise proposal", "an old friend",
        "a roommate", "loneliness in a big city", "saying sorry", "a wedding", "a divorce", "a crush", "trust",
        "a letter never sent",
    ),
    "Humour": (
        "a prank that backfired", "a job interview disaster", "autocorrect", "a clumsy waiter", "my cooking",
        "an awkward lift ride", "a talking car", "my dad's jokes", "a Monday morning", "online meetings",
        "a stuck zip", "a neighbour's rooster", "being late", "a wrong number",
    ),
    "Music": (
        "learning the guitar", "a live concert", "a piano piece", "a vinyl collection", "a choir", "a rap verse",
        "a love song", "a drum kit", "a street musician", "karaoke night", "a festival in the mud",
        "a violin teacher", "a new album", "a dance cover", "a traditional instrument",
    ),
    "Dance and stage": (
        "a street dance battle", "ballet shoes", "a school play", "stand-up comedy", "a magic trick",
        "a puppet show", "a salsa class", "a musical", "a circus act", "an opera", "square dancing in the park",
    ),
    "Technology": (
        "a slow laptop", "a new phone camera", "a smart watch", "learning to code", "a 3D printer", "headphones",
        "a password manager", "an electric car", "a drone", "building a PC", "artificial intelligence",
        "a broken screen", "a mechanical keyboard", "solar panels", "a home server", "a robot",
    ),
    "Cars and motorcycles": (
        "a first car", "an old motorcycle", "a flat tyre", "a truck driver's day", "a car wash", "drifting",
        "an engine rebuild", "parking", "a camper van", "a test drive", "a traffic jam", "a scooter in the city",
    ),
    "Photography and art": (
        "sunset photos", "street portraits", "watercolour flowers", "film cameras", "an oil painting", "graffiti",
        "a pottery class", "night sky photography", "a sketchbook", "calligraphy", "wood carving", "editing photos",
        "a museum visit", "embroidery", "a clay teapot", "paper folding",
    ),
    "Crafts": (
        "crochet", "a handmade lamp", "candles", "soap making", "sewing a bag", "a model ship", "knitting socks",
        "leather", "a repaired chair", "blacksmithing", "beads", "a wooden toy", "restoring old furniture",
    ),
    "Books and study": (
        "a crime novel", "exam stress", "learning Spanish", "note taking", "a library", "a poem",
        "writing a thesis", "a fantasy saga", "a study plan", "a reading challenge", "a biography",
        "university entrance", "maths homework", "history of ancient Rome", "a ghost story", "a children's book",
    ),
    "Career and money": (
        "a first job", "quitting", "working from home", "a small online shop", "saving money", "a difficult boss",
        "a pay rise", "freelancing", "an office move", "night shifts", "a nurse's day", "a market stall", "debts",
        "starting a business", "a construction site", "a delivery rider",
    ),
    "Health": (
        "sleeping badly", "back pain", "a cold", "anxiety", "giving up sugar", "allergies", "a dentist visit",
        "drinking more water", "a hospital stay", "meditation", "glasses", "migraine", "quitting smoking",
        "blood pressure",
    ),
    "Nature and outdoors": (
        "a dawn hike", "camping in the snow", "birds at the feeder", "a storm at sea", "a waterfall", "stargazing",
        "a bear on the trail", "kayaking", "autumn leaves", "wild swimming", "a volcano", "elephants",
        "a fox in the city", "a frozen lake", "a rainbow", "snakes", "a glacier", "dolphins",
    ),
    "Society and history": (
        "an old photograph", "a lost village", "a street protest", "a medieval castle", "a shipwreck",
        "an inventor", "a soldier's letters", "an emperor", "a famous trial", "a flood", "a kind stranger",
        "a police chase", "an election", "a local festival", "a myth", "an archaeological find", "a scam",
        "a rescue at sea",
    ),
}  # fmt: skip

FORMS: tuple[str, ...] = (
    "a social media post", "a short video caption", "a funny caption", "a review", "a question to the community",
    "a how-to tip", "a personal story", "a news flash", "a diary entry", "a list of tips", "a recommendation",
    "a rant", "the plot summary of a film", "the summary of a TV episode", "an advert", "a fun fact",
    "a quick update", "a before and after", "a mistake I made", "advice for beginners",
)  # fmt: skip

VOICES: tuple[str, ...] = (
    "a student", "a proud parent", "a retired teacher", "a sarcastic blogger", "an excited teenager",
    "a calm expert", "a tired nurse", "a local guide", "a collector", "a hobby cook", "a sports fan",
    "a shop owner", "a beginner", "a film critic", "a grandmother", "a gamer", "a traveller", "a farmer",
    "a comedian", "a journalist",
)  # fmt: skip
