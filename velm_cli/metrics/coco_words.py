"""The words by which English captions name COCO's 80 object categories: velm's own table, to be read and mended.

A line is `category: words`. A word of two or three categories ("bike") stands on a line that names them all, the
likeliest first; one on the line `nothing` names no category, whatever its parts do ("hot dog stand"). The longest
phrase wins, so "hot dog" is no dog. Plurals are made by rule; `word/plural` gives an irregular one and `=word`
stands for just this form ("=oranges": the singular is mostly a colour). Where a word is more often something else
("glass", "screen", "board", "glove"), it is left out: a missed mention does less harm than a wrong accusation.
"""

from __future__ import annotations

TABLE = """
person: person/persons, =people, human, individual/individuals, man/men, woman/women, guy, gentleman/gentlemen
person: lady, gal, dude, boy, girl, child/children, kid, toddler, teenager, teen, youth, youngster, schoolboy
person: schoolgirl, young one, son, daughter, husband, wife/wives, girlfriend, boyfriend, uncle, aunt, grandma
person: grandpa, grandmother, grandfather, bride, groom, bridesmaid, groomsman/groomsmen, couple of people
person: =crowd, =crowds, audience, spectator, onlooker, bystander, passerby/passersby, pedestrian, passenger
person: commuter, tourist, traveler, traveller, visitor, shopper, customer, diner guest, guest, student, pupil
person: teacher, worker, employee, businessman/businessmen, business man/business men, businesswoman/businesswomen
person: business woman/business women, businesspeople, business people, salesman/salesmen, vendor, seller, merchant
person: chef, baker, waiter, waitress, bartender, barista, cashier, clerk, butcher, farmer, fisherman/fishermen
person: shepherd, cowboy, cow boy, cowgirl, cow girl, jockey, horseman/horsemen, rider, driver, bus driver
person: truck driver, pilot, conductor, train conductor, captain, sailor, officer, police officer, cop
person: policeman/policemen, police man/police men, policewoman/policewomen, security guard, guard, lifeguard
person: life guard, soldier, serviceman/servicemen, firefighter, fire fighter, fireman/firemen, doctor, nurse
person: surgeon, dentist, barber, hairdresser, mailman/mailmen, workman/workmen, repairman/repairmen
person: handyman/handymen, craftsman/craftsmen, artist, musician, guitarist, singer, dancer, performer, entertainer
person: clown, photographer, cameraman/cameramen, reporter, politician, speaker at, presenter, graduate, hiker
person: jogger, runner, athlete, sportsman/sportsmen, player, ball player, ballplayer, teammate, opponent, batter
person: hitter, pitcher, catcher, umpire, referee, fielder, outfielder, infielder, baseman/basemen, goalie
person: goalkeeper, quarterback, batboy, bat boy, ball boy, ball girl, golfer, bowler, swimmer, diver, surfer
person: windsurfer, wind surfer, kite surfer, kitesurfer, kiteboarder, kite boarder, paddler, paddle boarder
person: paddleboarder, kayaker, rower, boater, skier, snowboarder, snow boarder, boarder, skater, skateboarder
person: skate boarder, bicyclist, cyclist, biker, motorcyclist, hot dog vendor, little one, =adult, =adults
person: couple is, couple are, couple sit, couple sits, couple sitting, couple stand, couple stands
person: couple standing, couple walk, couple walks, couple walking, couple pose, couple poses, couple posing
person: couple ride, couple rides, couple riding, couple on, couple in, couple at, couple with, couple cut
person: couple cutting, couple having, couple enjoying, couple eating, couple smiling, couple holding, couple kissing
person: couple who, couple wearing, couple playing, couple taking, couple watching, couple looking, =couples

bicycle: bicycle, bycicle, tricycle, mountain bike, bmx bike, road bike, racing bike, tandem bike, pedal bike
bicycle | motorcycle: bike
bicycle | motorcycle | skateboard: scooter
motorcycle: motorcycle, motor cycle, motorcylce, motorbike, motor bike, motorscooter, motor scooter, moped, vespa
motorcycle: dirt bike, dirtbike, sport bike, motocross bike, harley, harley davidson
car: car, automobile, sedan, coupe, suv, taxi, taxicab, cab, hatchback, convertible, station wagon, limousine, limo
car | truck | bus: van, minivan, mini van, jeep, ambulance, camper van, hearse
airplane: airplane, air plane, aeroplane, plane, aircraft/aircraft, air craft/air craft, jet, jetliner, jet liner
airplane: airliner, air liner, biplane, bi plane, seaplane, sea plane, jet plane, jet airplane, fighter jet
airplane: passenger plane, passenger jet, passenger airplane, passenger aircraft/passenger aircraft
bus: bus/buses, =busses, double decker, minibus/minibuses, mini bus/mini buses, passenger bus/passenger buses
bus: commuter bus/commuter buses, tourist bus/tourist buses
train: train, locomotive, train car, rail car, railcar, railroad car, railway car, subway car, dining car, box car
train: boxcar, passenger car, freight car, caboose, steam engine, train engine, passenger train, commuter train
train: monorail, tourist train
train | bus: tram, trolley, trolley car, streetcar, street car
truck: truck, lorry, pickup, pick up truck, semi truck, semi trailer, tractor trailer, big rig, 18 wheeler
truck: eighteen wheeler, firetruck, fire engine, bed of a truck, bed of the truck, back of a pickup
truck | bus | car: rv, camper, motor home, motorhome, recreational vehicle
boat: boat, sailboat, sail boat, rowboat, row boat, speedboat, speed boat, motorboat, motor boat, tugboat, tug boat
boat: houseboat, house boat, lifeboat, ship, yacht, canoe, kayak, ferry, raft, gondola, barge, dinghy, catamaran
boat: schooner, sailing vessel, pontoon, passenger boat, passenger ferry
traffic light: traffic light, traffic signal, traffic lamp, stoplight, stop light, street signal, crosswalk signal
fire hydrant: fire hydrant, hydrant, firehydrant, fire hydrate, fireplug, fire plug
stop sign: stop sign, stopsign
parking meter: parking meter, parkingmeter, parking metre, park meter, coin meter
bench: bench, park bench
dining table | bench: picnic table, picnic bench

bird: bird, duck, duckling, goose/geese, gosling, pigeon, seagull, sea gull, gull, parrot, parakeet, cockatoo, owl
bird: eagle, hawk, falcon, vulture, swan, rooster, hen, peacock, ostrich, flamingo, penguin, pelican, crow, raven
bird: sparrow, robin, finch, heron, stork, egret, hummingbird, humming bird, woodpecker, dove, blue jay, macaw
bird: blackbird, bird of prey/birds of prey
cat: cat, kitten, kitty, kitty cat, feline, siamese, tabby
dog: dog, doggy, doggie, puppy, canine, hound, poodle, bulldog, bull dog, pit bull, pitbull, terrier, retriever
dog: labrador, beagle, dachshund, chihuahua, pug, collie, husky, dalmatian, corgi, rottweiler, spaniel, mutt, pup
dog: german shepherd, sheepdog, sheep dog, greyhound, great dane, schnauzer, shih tzu
horse: horse, pony, foal, mare, stallion, colt, bucking bronco
sheep: sheep/sheep, =sheeps, lamb, ewe, ram
cow: cow, =cattle, bull, ox/oxen, heifer, longhorn, long horn
cow | elephant | giraffe: calf/calves
elephant: elephant, bull elephant
bear: bear, grizzly, polar bear, panda, cub
teddy bear | bear: bear doll, toy bear, bear toy
zebra: zebra
giraffe: giraffe, giraff, girafe
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: baby, infant, newborn, mother, mom
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: mommy, mama, momma, father, dad
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: parent, =family, =families
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: sibling, brother, sister
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird | teddy bear: friend, buddy

backpack: backpack, back pack, rucksack, knapsack, book bag, bookbag, school bag
umbrella: umbrella, parasol
handbag: handbag, hand bag, purse, pocketbook, tote bag, shoulder bag
tie: tie, necktie, neck tie, bowtie, bow tie
suitcase: suitcase, suit case, briefcase, brief case
suitcase | backpack | handbag: =luggage, baggage/baggage, duffel bag, duffle bag, travel bag, luggage bag
frisbee: frisbee, frizbee, frisbe, frisby, flying disc, flying disk
skis: =skis, pair of skies, pair of ski, on skies, snow skis, cross country skis
snowboard: snowboard, snow board
skis | snowboard: ski board
sports ball: ball, soccerball, =baseballs, =basketballs, =footballs, volleyball ball
kite: kite, parasail
baseball bat: bat, baseball bat, softball bat
baseball glove: baseball glove, baseball mitt, catcher mitt, catchers mitt, catcher s mitt, fielder s glove, mitt
skateboard: skateboard, skate board
skateboard | surfboard: longboard, long board
surfboard: surfboard, surf board, bodyboard, body board, boogie board, paddleboard, paddle board
tennis racket: racket, racquet, raquet, tennis racket, tennis racquet, tennis raquet

bottle: bottle
wine glass: wine glass, wineglass, glass of wine/glasses of wine, glass of red wine/glasses of red wine
wine glass: glass of white wine/glasses of white wine, champagne glass, champagne flute, wine goblet
wine glass | cup: glass of/glasses of, drinking glass, goblet
cup: cup, mug, coffee cup, tea cup, teacup, beer mug, glass mug, shot glass, tumbler
fork: fork
knife: knife/knives
spoon: spoon, teaspoon, tablespoon, ladle
fork | knife | spoon: utensil, eating utensil, =silverware, =cutlery, flatware
bowl: bowl
banana: banana, plantain
apple: apple
sandwich: sandwich, =sandwhich, =sandwhiches, hamburger, burger, cheeseburger, cheese burger, panini, hoagie
orange: =oranges, orange slice, orange fruit, orange peel, orange segment, slice of orange/slices of orange
orange: orange on, orange in, orange sitting, orange that, orange being, half an orange, peeled orange, tangerine
orange: clementine, mandarin, mandarin orange, naval orange, navel orange, orange half/orange halves, =tangelos
broccoli: broccoli/broccolis, brocolli, broccolli, brocoli
carrot: carrot
hot dog: hot dog, hotdog, chili dog, frankfurter, wiener, weiner, bratwurst
hot dog | sandwich: sub sandwich
pizza: pizza
donut: donut, doughnut, dough nut, =donughts
cake: cake, cupcake, cup cake, birthday cake, wedding cake, cheesecake, cheese cake, carrot cake, banana cake
cake: apple cake, orange cake, shortcake

chair: chair, armchair, arm chair, recliner, highchair, high chair, rocking chair, office chair, computer chair
chair | couch: easy chair, lounge chair, chaise, chaise lounge
couch: couch, sofa, loveseat, love seat
couch | bed: futon, daybed, day bed, sofa bed
potted plant: potted plant, pot plant, plant pot, houseplant, house plant, flowerpot, flower pot, planter, potted tree
potted plant: potted flower, potted palm, plant in a pot, plants in pots
bed: bed, mattress, bunkbed, bunk bed, crib, hospital bed
dining table: table, dining table, tabletop, table top, desk, coffee table, computer desk, office desk
toilet: toilet, toilet seat, toilet bowl, toilet lid, toilet tank, commode, urinal
tv: tv, television, tv set, television set, tv screen, television screen, flat screen, flatscreen
tv | laptop: monitor, computer monitor, computer screen, desktop monitor
laptop: laptop, lap top, laptop computer, macbook, netbook, laptop screen, apple laptop, apple macbook
laptop | tv | keyboard: computer, desktop computer, desktop pc, apple computer, pc
mouse: mouse/mice, computer mouse/computer mice
remote: remote, remote control, remote controller, wii remote, wiimote, wii mote, wii control, tv remote
remote: television remote, game controller, video game controller, wii controller, nintendo wii controller
remote: controller, wii game controller, nintendo wii remote, game remote, tv remote control, gaming controller
keyboard: keyboard, key board, computer keyboard, laptop keyboard
cell phone: cell phone, cellphone, cellular phone, cellular telephone, cell, mobile phone, phone, smartphone
cell phone: smart phone, iphone, telephone, flip phone, mobile device, camera phone
microwave: microwave, microwave oven
oven: oven, stove, stovetop, stove top, stove top oven, pizza oven, gas range, kitchen range
oven | toaster | microwave: toaster oven
toaster: toaster
sink: sink, washbasin, wash basin, bathroom sink, kitchen sink
refrigerator: refrigerator, refridgerator, refrigerater, fridge, freezer, mini fridge
book: book, textbook, text book, cookbook, cook book, paperback
clock: clock, alarm clock, clocktower, clock tower, clock face
vase: vase, flower vase
vase | cup | bottle: pitcher of, pitchers of, water pitcher, glass pitcher
scissors: =scissors, scissor/scissor, pair of scissors/pairs of scissors
teddy bear: teddy bear, teddybear, teddy, stuffed bear, plush bear, stuffed animal, stuffed toy, stuffed teddy bear
teddy bear: stuffed teddy, plush toy, plush animal, stuffed animal toy, stuffed bear toy, build a bear, teddy bear doll
hair drier: hair drier, hair dryer, hairdryer, hairdrier, blow dryer, blow drier, blowdryer
toothbrush: toothbrush, tooth brush, electric toothbrush

nothing: man made, snow man, gingerbread man/gingerbread men, stick man, iron man, men s room, mens room
nothing: men s restroom, men s bathroom, women s restroom, women s room, women s bathroom, ladies room, lady bug
nothing: children s, child s, childrens, childs, kid s room, kids room, baby s room, family room, table runner
nothing: cake batter, pancake batter, batter bowl, batter s box, batters box, family style, family size
nothing: crowd of, individual pizza, individual serving, human being, baby carrot, baby corn, baby bed, baby seat
nothing: baby stroller, baby carriage, baby blue, baby shower, baby doll, baby bottle, baby s bottle, guard rail
nothing: passenger side, passenger seat, passenger door, passenger window, passenger area, passenger section
nothing: cowboy hat, cowboy boot, chef hat, chef s hat, couple of, driver s seat, drivers seat, driver seat
nothing: driver s side, jockey box, diner guest check, pitcher s mound, pitchers mound, pitcher mound
nothing: player piano, cd player, dvd player, record player, music player, mp3 player, pilot light

nothing: bike rack, bicycle rack, bike path, bicycle path, bike lane, bicycle lane, bike trail, bicycle trail
nothing: bike shop, bicycle shop, bike stand, exercise bike, stationary bike, cycle lane, motorcycle helmet
nothing: bike helmet, bicycle helmet, motorcycle jacket, car seat, car wash, car park, car lot, car garage
nothing: cable car, bumper car, side car, sidecar, car show, motorcycle show, parking lot, truck stop, hand truck
nothing: hand cart, jet ski, jet skis, jet skier, jet engine, jet stream, jet trail, jet way, plane ticket, ice cream truck driver
nothing: bus stop, bus station, bus terminal, bus depot, bus lane, bus shelter, bus bench, bus sign, bus route
nothing: train track, train tracks, train station, train yard, train platform, train depot, train rail, train line
nothing: train set, train bridge, train tunnel, train crossing, train signal, train light, train stop, train of her
nothing: train terminal, train trestle, train bell, train museum, train s tracks, cab of, car door handle
nothing: boat house, boat dock, boat ramp, boat launch, boat slip, boat yard, gravy boat, banana boat, boat shoe
nothing: boat s dock, street light, fire extinguisher, work bench, workbench, bench press, weight bench

nothing: bird house, bird bath, bird feeder, bird cage, bird s nest, birds nest, bird nest, birds eye, bird s eye
nothing: bird seed, rubber duck, rubber ducky, duck tape, duck pond, crow bar, cat tail, cat walk, cat food
nothing: cat litter, cat s cradle, cat fish, cat bed, cat house, cat toy, cat tree, dog bed, pet bed, dog house
nothing: dog food, dog bowl, dog dish, dog park, dog toy, dog leash, dog collar, dog crate, dog kennel, dog treat
nothing: dog bone, dog show, dog sled, prairie dog, corn dog, down dog, hot dog stand, hot dog cart, hot dog bun
nothing: hotdog stand, hotdog bun, hot dog truck, hot dog wrapper, hot dog shop, pup tent, seal pup, sea horse
nothing: rocking horse, saw horse, horse race, horse racing, horse track, horse trailer, horse shoe, horse back
nothing: horse stable, horse barn, lamb chop, lamb meat, rack of lamb, leg of lamb, leg of a lamb, sheep skin
nothing: cow hide, cow bell, cow print, red bull, bull dozer, bull fighting ring, bull pen, bull horn, ox bow
nothing: elephant ear, elephant trunk, koala bear, bear claw, bear fruit, bears fruit, gummy bear, lion cub
nothing: tiger cub, zebra print, zebra stripe, zebra striped, zebra crossing, zebra crosswalk, zebra cross
nothing: giraffe print, baby goat, baby deer, baby pig, mother goat, mother duck feeder, panda express, bear statue

nothing: beach umbrella stand, umbrella stand, suit and tie shop, tie dye, tie dyed, tie die, railroad tie, rail road tie
nothing: rail tie, train tie, zip tie, twist tie, tie his shoe, ties his shoe, ties her shoe, tie down, tie up, to tie
nothing: luggage carousel, luggage claim, baggage claim, baggage carousel, luggage rack, luggage cart, luggage trailer
nothing: baggage cart, baggage trailer, baggage truck, luggage truck, luggage car, baggage car, luggage compartment
nothing: baggage area, luggage area, baggage handler, luggage belt, baggage belt, luggage conveyor, luggage tag
nothing: ball game, ball gown, ball field, ball park, ball room, ball cap, ball pit, balls of yarn, ball of yarn
nothing: meat ball, disco ball, crystal ball, christmas ball, popcorn ball, cotton ball, cheese ball, rice ball
nothing: yarn ball, ball machine, ball bearing, ball hopper, kite surfing, kite surf, kite boarding, kite board
nothing: kite festival, kite shop, at bat, up to bat, to bat, oven mitt, skateboard ramp, skate board ramp
nothing: skateboard park, skate board park, skateboard shop, skateboard trick, skate board trick, skateboard track
nothing: skateboard course, skateboard rink, skateboard competition, skateboarding trick, surfboard shop
nothing: surf board shop, surf board rack, snowboard ramp, snowboard competition, tennis racket cover, racket ball

nothing: bottle cap, bottle opener, bottle rack, world cup, cup holder, measuring cup, suction cup, cup board
nothing: pitch fork, fork lift, fork in the road, fork in a road, bowl cut, super bowl, fish bowl, glass of the
nothing: banana bread, banana split, banana tree, banana leaf, banana leaves, banana plant, banana pudding
nothing: banana pepper, banana muffin, apple pie, apple sauce, apple juice, apple cider, apple tree, apple logo
nothing: apple store, apple product, apple device, apple brand, apple iphone box, pine apple, big apple, apple crisp
nothing: apple computer mouse pad, sandwich shop, sandwich board, sandwich sign, ice cream sandwich, burger king
nothing: orange in color, orange in colour, orange tree, orange juice, mandarin restaurant, carrot top, pizza box
nothing: pizza cutter, pizza shop, pizza parlor, pizza place, pizza restaurant, pizza hut, pizza pan, pizza peel
nothing: pizza stone, pizza dough, pizza sauce, pizza tray, pizza plate, pizza wheel, pizza slicer, pizza kitchen
nothing: pizza joint, pizzeria, donut shop, doughnut shop, donut box, donut store, doughnut store, donut machine
nothing: doughnut machine, dunkin donuts, dunkin donut, krispy kreme donut shop, pan cake, crab cake, rice cake
nothing: cake shop, cake pan, cake stand, cake plate, cake pop, cake mix, cake knife stand, cake server, fish cake

nothing: chair lift, ski lift chair, wheel chair, electric chair, flower bed, truck bed, bed of flowers
nothing: bed of lettuce, bed of rice, bed of greens, bed of vegetables, bed of salad, bed of grass, bed of hay
nothing: bed of rocks, bed of spinach, bed of broccoli, bed of noodles, bed of pasta, bed of snow, river bed
nothing: garden bed, raised bed, bed room, bed and breakfast, bed side, bed frame, bed spread, pool table
nothing: ping pong table, table tennis, table cloth, table saw, end table, side table, night table, bedside table
nothing: changing table, water table, table lamp, desk lamp, desk top, front desk, help desk, toilet paper
nothing: toilet roll, toilet brush, toilet tissue, toilet paper holder, toilet plunger, toilet paper dispenser
nothing: toilet paper roll, roll of toilet paper, toiletry, urinal cake, port a potty, tv stand, television stand, tv show
nothing: tv dinner, tv station, tv cabinet, tv studio, tv tower, tv console, mouse pad, mousepad, mouse trap
nothing: mickey mouse, minnie mouse, computer room, computer lab, computer bag, computer case, computer tower
nothing: computer game, computer store, computer equipment, computer part, computer accessory, computer paper
nothing: computer speaker, computer cable, computer station, computer generated, computer table, laptop bag
nothing: laptop case, laptop stand, keyboard instrument, piano keyboard, musical keyboard, music keyboard
nothing: remote area, remote location, remote field, remote road, remote place, remote region, remote island
nothing: remote beach, remote mountain, remote control car, remote control plane, remote control airplane
nothing: remote control helicopter, remote control truck, remote control boat, remote controlled, remote desert
nothing: phone booth, telephone booth, phone pole, telephone pole, telephone line, telephone wire, phone line
nothing: phone wire, pay phone, payphone, phone box, telephone box, telephone post, phone book, cell tower, phone case
nothing: oven rack, oven door handle, oven mit, kitchen sink faucet, refrigerator magnet, book shelf, book shelves
nothing: book case, book store, book rack, book end, comic book store, check book, o clock, clock work
nothing: hair dryer holder, toothbrush holder, tooth brush holder, toothbrush case, care bear, bear trap, ice bear
"""


def _entries() -> dict[tuple[str, ...], tuple[str, ...]]:
    meanings: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line in filter(None, TABLE.splitlines()):
        head, words = line.split(": ")
        categories = () if head == "nothing" else tuple(head.split(" | "))
        for entry in words.split(", "):
            for form in forms(entry):
                assert meanings.setdefault(tuple(form.split()), categories) == categories, f"{form}: two meanings"
    return meanings


def forms(entry: str) -> list[str]:
    """The forms that an entry of the table stands for: itself and its plural, unless it says otherwise."""
    if entry.startswith("="):
        return [entry[1:]]
    if "/" in entry:
        return entry.split("/")
    return [entry, plural(entry)]


def plural(word: str) -> str:
    """The regular English plural."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


MEANINGS = _entries()  # phrase, as its words -> the categories it may mean; none for what must not be mistaken
CATEGORIES = frozenset(category for categories in MEANINGS.values() for category in categories)
LONGEST = max(map(len, MEANINGS))
