"""Hashtags as a lifestyle community uses them, by category: a part of the vocabulary of pseudo-labels.

Written for this project. Keys outside of model.config.DEFAULT_CATEGORIES are subjects that no default category covers.
"""

from __future__ import annotations

COMMUNITY_TAGS: dict[str, str] = {
    "Travel": """travel tips, budget travel, slow travel, solo travel, city break, weekend trip, day trip, road trip,
        train travel, night train, backpacking, hostel life, packing list, carry on only, airport, long flight, jet
        lag, travel costs, itinerary, island hopping, beach holiday, hotel review, camper van, van life, travel with
        kids, lost luggage, passport, street photography, old town, museums, local food, japan trip, europe by train,
        mexico travel, italy, spain, portugal, greece, thailand, vietnam, china travel, india travel, morocco,
        iceland, paris, london, new york, tokyo, kyoto, lisbon, ferry, cruise, safari, desert, hidden gems, travel
        diary""",
    "Food": """home cooking, recipe, easy recipe, weeknight dinner, meal prep, cheap meals, breakfast, brunch, lunch
        box, street food, restaurant review, coffee, espresso, tea, matcha, bubble tea, baking, home baking,
        sourdough, bread, cake, cookies, cheesecake, chocolate, dessert, ice cream, pasta, pizza, noodles, ramen,
        dumplings, rice, curry, indian food, chinese food, japanese food, korean food, mexican food, italian food,
        tacos, soup, stew, salad, vegetarian, vegan, tofu, seafood, fish, chicken, beef, pork, barbecue, grilling, air
        fryer, slow cooker, one pot meal, fermenting, kimchi, pickles, hot sauce, spicy food, leftovers, snacks,
        cheese, wine, beer, cocktails, kitchen tools, cast iron, food budget, picky eater, side dish, sauce,
        vegetables""",
    "Fashion": """outfit, outfit ideas, street style, capsule wardrobe, work outfits, wedding guest, vintage fashion,
        thrifting, secondhand, slow fashion, denim, jeans, sneakers, boots, shoes, handbags, winter coat, rain jacket,
        knitwear, dresses, suit, linen, leather, jewellery, watches, sunglasses, hats, tailoring, fit check, wardrobe
        declutter, colour matching, plus size, petite, menswear, socks, laundry care, shopping haul""",
    "Beauty": """skincare, skincare routine, sunscreen, dry skin, oily skin, acne, retinol, moisturiser, face mask,
        makeup, everyday makeup, eyeliner, lipstick, foundation, mascara, eyebrows, perfume, hair care, curly hair,
        hair routine, haircut, hair dye, hairstyle, braids, nails, nail art, gel nails, manicure, shaving, beard,
        beauty on a budget, drugstore beauty, product review, allergy patch test, tattoo""",
    "Fitness": """running, first 10k, marathon, half marathon, training plan, training tips, strength training, gym,
        gym notes, home workout, pull ups, push ups, squats, deadlift, yoga, pilates, stretching, mobility, swimming,
        cycling, rowing, boxing, martial arts, dance workout, jump rope, walking habit, daily steps, beginner fitness,
        injury, recovery, protein, weight loss, core workout, knee pain, personal trainer, rest day, bouldering""",
    "Home": """home diy, home decor, interior design, small apartment, rental hacks, renter friendly, first home,
        moving house, furniture, flat pack, storage ideas, tidying, declutter, cleaning, cleaning tips, laundry,
        kitchen, bathroom, bedroom, living room, lighting, lamps, curtains, rug, wall paint, wallpaper, tiles,
        renovation, plumbing, leaking tap, power tools, shelves, desk setup, home office, minimalism, heating, energy
        saving, insulation, noisy neighbours, roommates, robot vacuum, appliances, mould, bed, candles""",
    "Pets": """cats, cat life, kitten, tabby cat, rescue cat, second cat, dogs, dog owner, puppy, dog training, dog
        walk, rescue dog, senior dog, corgi, vet visit, pet costs, pet gear, pet food, litter box, scratching post,
        rabbits, guinea pig, hamster, parrot, budgie, goldfish, aquarium, fish tank, turtle, lizard, snake, horse,
        chickens, pet sitting, pet adoption, grooming, pet hair, separation anxiety""",
    "Parenting": """parenting, parenting diary, newborn, baby, baby sleep, toddler life, toddler sleep, preschool,
        school run, teenagers, twins, pregnancy, breastfeeding, baby food, kids food, potty training, tantrums,
        bedtime, bedtime stories, kids activities, rainy day, family weekend, family travel, new dad, motherhood,
        fatherhood, single parent, grandparents, siblings, birthday party, screen time, homework, daycare, toys,
        family budget, mum life, work and family""",
    "Study": """study tips, study routine, study with me, exam prep, exams, flashcards, note taking, spaced
        repetition, language learning, japanese study, learning english, learning spanish, learning chinese,
        vocabulary, grammar, university, grad school, med school, law school, thesis writing, essay, homework help,
        maths, statistics, physics, chemistry, biology, history, geography, library, focus, procrastination, pomodoro,
        time management, online course, teacher, classroom, scholarship, student life, dorm room, reading list""",
    "Tech": """phone, smartphone, laptop, headphones, mechanical keyboard, keyboard build, smart home, smart watch,
        tablet, monitor, printer, 3d printing, programming, coding, python, javascript, java, web development, linux,
        windows, mac, android, iphone, open source, software, apps, backup, data storage, home server, networking,
        wifi, router, security, passwords, privacy, encryption, database, artificial intelligence, machine learning,
        chatbot, robots, drone, electric car, solar panels, battery, usb, repair, gadgets, debugging, command line,
        text editor, file formats, audio, video editing, digital minimalism, bug, cloud, engineering""",
    "Photography": """photo tips, film photography, film camera, analog, street photography, portraits, landscape,
        night photography, astrophotography, milky way, macro, phone photography, camera gear, lenses, tripod, photo
        editing, lightroom, darkroom, black and white, golden hour, sunset, composition, wedding photography, wildlife
        photography, photo walk, instant camera, self portrait, exposure""",
    "Reading": """books, book review, book recommendations, book club, reading habits, reading slump, reading goals,
        library books, audiobooks, ebook reader, novels, classics, big books, short stories, poetry, fantasy, science
        fiction, crime novel, thriller, romance novels, historical fiction, biography, memoir, nonfiction, comics,
        manga, graphic novel, childrens books, bookshelf, secondhand books, writing, rereading, translation""",
    "Music": """music, songs, playlist, album, vinyl, record collecting, concerts, live music, festival, guitar, bass
        guitar, piano, drums, violin, singing, choir, songwriting, music theory, music production, jazz, rock, pop
        music, hip hop, rap, metal, punk, folk music, electronic music, classical music, opera, karaoke, band, music
        discovery, cooking playlist, headphones, practice routine, street music, lyrics, soundtrack""",
    "Film": """film, movie night, movie review, film recommendations, classic film, cinema, film festival,
        documentary, horror, comedy, thriller, romance, science fiction, western, animation, anime, ghibli, superhero,
        musical, tv series, season finale, plot twist, film challenge, director, actor, screenwriting, sitcom, crime
        drama, war film, silent film, black and white, spoilers, streaming""",
    "Gaming": """gaming, video games, pc gaming, console, handheld gaming, nintendo, playstation, xbox, retro games,
        indie games, cozy games, farming game, open world, role playing game, strategy game, shooter, racing game,
        puzzle game, platformer, fighting game, mobile game, multiplayer, esports, speedrun, boss fight, game tips,
        game review, board games, game night, card game, chess, dice, tabletop, dungeons, mods, level design""",
    "Crafts": """handmade, diy, knitting, crochet, first sweater, sewing, visible mending, mending, upcycling,
        embroidery, quilting, weaving, pottery, ceramics, clay, woodworking, carving, leather craft, jewellery making,
        candle making, soap making, origami, paper craft, bookbinding, calligraphy, drawing, sketchbook, painting,
        watercolour, oil painting, printmaking, model building, miniatures, lego, cosplay, yarn, fabric, craft fair,
        toys""",
    "Gardening": """garden, balcony garden, container gardening, vegetable garden, tomatoes, herbs, lettuce, chillies,
        houseplants, plant care, succulents, cactus, orchid, roses, bulbs, seedlings, seeds, compost, soil, watering,
        repotting, pruning, pests, slugs, aphids, garden problems, raised bed, greenhouse, autumn garden, spring
        garden, fruit trees, berries, lawn, wildflowers, trees, flowers, propagation, allotment, garden tools, bees""",
    "Career": """career change, job search, job hunt diary, job interview, interviews, cv tips, new job, first job,
        new manager, leadership, work communication, meetings, work from home, remote work, office life, burnout, work
        life balance, promotion, pay rise, salary, quitting, freelancing, small business, startup, side hustle,
        networking event, productivity, internship, shift work, night shift, nurse, teacher life, colleagues, layoffs,
        business, marketing, money, saving money, investing, budget living, taxes, retirement""",
    "Health": """sleep habits, better sleep, evening routine, wind down, insomnia, mental health, anxiety, stress,
        meditation, mindfulness, therapy, habits, habit tracking, hydration, nutrition, sugar free, allergies,
        migraine, back pain, posture, dentist, doctor, hospital, surgery, medicine, vaccines, cold and flu, first aid,
        skin rash, eye health, heart health, diabetes, pregnancy health, quitting smoking, sober, hormones, gut
        health, vitamins, chronic illness, exercise, disease, self care, breathing, loneliness""",
    "Outdoors": """hiking, day hike, mountain hut, hut to hut, mountains, mountain safety, trail, trail food, summit,
        camping, tent, campfire, wild camping, outdoor gear, hiking boots, rain gear, winter hiking, snow, skiing,
        snowboarding, climbing, kayaking, canoe, sailing, surfing, wild swimming, cold water swimming, lake, river,
        waterfall, forest, birdwatching, foraging, mushrooms, fishing, stargazing, national park, cycling tour,
        nature, wildlife, early morning, sunrise, weather, storm, beach, fossil, microadventure, navigation""",
    "Sport": """football, soccer, basketball, baseball, tennis, cricket, rugby, golf, hockey, volleyball, table
        tennis, badminton, athletics, gymnastics, olympics, world cup, motor racing, formula one, wrestling, figure
        skating, skateboarding, match report, team, referee, coach, stadium, championship, fans, horse racing""",
    "Science": """science, space, astronomy, planets, stars, physics, chemistry, biology, genetics, evolution,
        dinosaurs, animals, insects, birds, mammals, reptiles, sea life, sharks, whales, plants, trees, geology,
        rocks, volcano, earthquake, climate, weather, ocean, mathematics, geometry, statistics, numbers, medicine,
        anatomy, brain, psychology, energy, electricity, materials, metal, inventions, engineering, fun facts""",
    "Society": """history, ancient history, ancient rome, middle ages, world war, war, military, weapons, navy, kings,
        royal family, politics, election, government, law, court, crime, police, prison, economy, banking, trade,
        taxes, religion, christianity, islam, buddhism, hinduism, mythology, folklore, philosophy, language, words,
        grammar, literature, art, art history, sculpture, architecture, theatre, dance, ballet, fashion history,
        geography, capital cities, countries, rivers, maps, flags, usa, britain, france, germany, russia, africa,
        australia, newspaper, advertising, slogans, brands, celebrities, quiz, trivia, education, school, community,
        volunteering, immigration, charity, festival, christmas, halloween, new year, tradition, ceremony, marriage,
        wedding, family, friendship, dating, relationships, breakup, love, humour, jokes, memes, embarrassing moment,
        kindness, nostalgia, daily life, growing up, neighbours, city life, country life, transport, trains,
        aeroplane, ships, cars, car repair, motorcycle, truck, driving, traffic, parking, farming, industry, mining,
        factory, construction, tools, machines""",
}  # fmt: skip


def tags_by_category() -> dict[str, tuple[str, ...]]:
    """Return COMMUNITY_TAGS, split into tuples."""
    return {name: tuple(" ".join(tag.split()) for tag in text.split(",")) for name, text in COMMUNITY_TAGS.items()}
