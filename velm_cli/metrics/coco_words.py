"""The words by which English captions name COCO's 80 object categories: velm's own table, to be read and mended.

A line is `category: words`. A word of two or three categories ("bike") stands on a line that names them all, the
likeliest first; one on the line `nothing` names no category, whatever its parts do ("hot dog stand"). The longest
phrase wins, so "hot dog" is no dog. Plurals are made by rule; `word/plural` gives an irregular one and `=word`
stands for just this form ("=oranges": the singular is mostly a colour). Where a word is more often something else
("glass", "screen", "board", "glove"), it is left out: a missed mention does less harm than a wrong accusation.
"""

from __future__ import annotations

TABLE = """
person: person/persons, =people, human, man/men, woman/women, guy, gentleman/gentlemen, lady, gal, dude, boy, girl
person: child/children, kid, toddler, teenager, teen, youth, youngster, schoolboy, schoolgirl, son, daughter, husband
person: wife/wives, girlfriend, boyfriend, uncle, aunt, grandma, grandpa, grandmother, grandfather, bride, =groom
person: bridesmaid, groomsman/groomsmen, =crowd, =crowds, audience, spectator, onlooker, bystander, passerby/passersby
person: pedestrian, passenger, commuter, tourist, traveler, traveller, visitor, shopper, customer, guest, student
person: pupil, teacher, worker, employee, businessman/businessmen, business man/business men
person: businesswoman/businesswomen, business woman/business women, businesspeople, business people, salesman/salesmen
person: vendor, seller, merchant, chef, baker, waiter, waitress, bartender, barista, cashier, clerk, butcher, farmer
person: fisherman/fishermen, shepherd, cowboy, cow boy, cowgirl, cow girl, jockey, horseman/horsemen, rider, driver
person: bus driver, truck driver, pilot, conductor, train conductor, captain, sailor, officer, police officer, cop
person: policeman/policemen, police man/police men, policewoman/policewomen, security guard, =guard, lifeguard
person: life guard, soldier, serviceman/servicemen, firefighter, fire fighter, fireman/firemen, doctor, =nurse
person: surgeon, dentist, barber, hairdresser, mailman/mailmen, workman/workmen, repairman/repairmen
person: handyman/handymen, craftsman/craftsmen, artist, musician, guitarist, singer, dancer, performer, entertainer
person: clown, photographer, cameraman/cameramen, reporter, politician, presenter, graduate, hiker, jogger, runner
person: athlete, sportsman/sportsmen, player, ball player, ballplayer, teammate, opponent, batter, hitter, catcher
person: umpire, referee, fielder, outfielder, infielder, baseman/basemen, goalie, goalkeeper, quarterback, batboy
person: bat boy, ball boy, ball girl, golfer, bowler, swimmer, diver, surfer, windsurfer, wind surfer, kite surfer
person: kitesurfer, kiteboarder, kite boarder, paddler, paddle boarder, paddleboarder, kayaker, rower, boater, skier
person: snow skier, snowboarder, snow boarder, boarder, skater, skateboarder, skate boarder, bicyclist, cyclist, biker
person: motorcyclist, hot dog vendor, zookeeper, zoo keeper, owner, patron, =folks, couple is, couple are, couple sit
person: couple sits, couple sitting, couple stand, couple stands, couple standing, couple walk, couple walks
person: couple walking, couple pose, couple poses, couple posing, couple ride, couple rides, couple riding, couple on
person: couple in, couple at, couple with, couple cutting, couple having, couple enjoying, couple eating
person: couple smiling, couple holding, couple kissing, couple who, couple wearing, couple playing, couple taking
person: couple watching, couple looking, =couples, =individuals, human being

bicycle: bicycle, bycicle, tricycle, mountain bike, bmx bike, road bike, racing bike, tandem bike, pedal bike
bicycle | motorcycle: bike
bicycle | motorcycle | skateboard: scooter
motorcycle: motorcycle, motor cycle, motorcylce, motorbike, motor bike, motorscooter, motor scooter, moped, vespa
motorcycle: dirt bike, dirtbike, sport bike, motocross bike, harley, harley davidson
car: car, automobile, sedan, suv, taxi, taxicab, cab, hatchback, convertible, station wagon, limousine, limo
car | truck | bus: van, minivan, passenger van, mini van, jeep, ambulance, camper van, hearse
airplane: airplane, air plane, aeroplane, plane, aircraft/aircraft, air craft/air craft, jet, jetliner, jet liner
airplane: airliner, air liner, biplane, bi plane, seaplane, sea plane, jet plane, jet airplane, fighter jet
airplane: passenger plane, passenger jet, passenger airplane, passenger aircraft/passenger aircraft, commuter plane
airplane: commuter jet, jumbo jet
bus: bus/buses, =busses, double decker, minibus/minibuses, mini bus/mini buses, passenger bus/passenger buses
bus: commuter bus/commuter buses, tourist bus/tourist buses
train: train, locomotive, train car, rail car, railcar, railroad car, railway car, subway car, dining car, box car
train: boxcar, passenger car, freight car, caboose, steam engine, train engine, passenger train, commuter train
train: monorail, tourist train
train | bus: trolley train, tram, trolley car, streetcar, street car
truck: truck, lorry, pickup, pick up truck, semi truck, semi trailer, tractor trailer, big rig, 18 wheeler
truck: eighteen wheeler, firetruck, fire engine, flat bed truck, flatbed, bed of a truck, bed of the truck
truck: luggage truck, baggage truck, hot dog truck
truck | bus | car: rv, camper, motor home, motorhome, recreational vehicle
boat: boat, sailboat, sail boat, rowboat, row boat, speedboat, speed boat, motorboat, motor boat, tugboat, tug boat
boat: houseboat, house boat, lifeboat, ship, yacht, canoe, kayak, ferry, raft, gondola, barge, dinghy, catamaran
boat: schooner, sailing vessel, pontoon, passenger boat, passenger ferry, passenger ship, tourist boat
traffic light: traffic light, traffic signal, traffic lamp, stoplight, stop light, street signal, crosswalk signal
fire hydrant: fire hydrant, hydrant, firehydrant, fire hydrate, fireplug, fire plug
stop sign: stop sign, stopsign
parking meter: parking meter, parkingmeter, parking metre, park meter, coin meter
bench: bench, park bench, picnic bench, bus bench

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
bear: grizzly, grizzly bear, polar bear, panda, panda bear, cub
bear | teddy bear: bear
teddy bear | bear: bear doll, toy bear, bear toy
zebra: zebra
giraffe: giraffe, giraff, girafe
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: baby, infant, newborn, mother
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: mom, mommy, mama, momma, father
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: dad, parent, =family, =families
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: sibling, brother, sister, adult
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: young one, little one, =males
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird: =females
person | dog | cat | elephant | giraffe | zebra | bear | cow | horse | sheep | bird | teddy bear: friend, buddy

backpack: backpack, back pack, rucksack, knapsack, book bag, bookbag, school bag
umbrella: umbrella, parasol
handbag: handbag, hand bag, purse, pocketbook, tote bag, shoulder bag
tie: tie, necktie, neck tie, bowtie, bow tie
suitcase: suitcase, suit case, briefcase, brief case
suitcase | backpack | handbag: =luggage, baggage/baggage, duffel bag, duffle bag, travel bag, luggage bag
frisbee: frisbee, frizbee, frisbe, frisby, disc, flying disc, flying disk
skis: =skis, =skiis, pair of skies, pair of ski, on skies, snow skis, cross country skis
snowboard: snowboard, snow board
skis | snowboard: ski board
sports ball: ball, base ball, soccerball, =baseballs, =basketballs, =footballs, volleyball ball
kite: kite, parasail
baseball bat: bat, baseball bat, base ball bat, softball bat
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
knife: knife/knives, butcher knife/butcher knives, cake knife/cake knives
spoon: spoon, teaspoon, tablespoon, ladle
fork | knife | spoon: utensil, eating utensil, =silverware, =cutlery, flatware
bowl: bowl, batter bowl
banana: banana, plantain
apple: apple
sandwich: sandwich, =sandwhich, =sandwhiches, hamburger, burger, cheeseburger, cheese burger, panini, hoagie
orange: =oranges, orange slice, orange fruit, orange peel, orange segment, slice of orange/slices of orange
orange: an orange on, an orange in, an orange sitting, an orange that, half an orange, peeled orange, tangerine
orange: clementine, mandarin, mandarin orange, naval orange, navel orange, orange half/orange halves, =tangelos
broccoli: broccoli/broccolis, brocolli, broccolli, brocoli
carrot: carrot
hot dog: hot dog, hotdog, chili dog, coney dog, frankfurter, wiener, weiner, bratwurst
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
dining table: table, dining table, tabletop, table top, desk, coffee table, picnic table, computer desk, office desk
dining table: computer table
toilet: toilet, toilet seat, toilet bowl, toilet lid, toilet tank, commode, urinal
tv: tv, television, tv set, television set, tv screen, television screen, flat screen, flatscreen
tv | laptop: monitor, computer monitor, computer screen, desktop monitor
laptop: laptop, lap top, laptop computer, macbook, netbook, laptop screen, apple laptop, apple macbook
laptop | tv | keyboard: computer, desktop computer, desktop pc, apple computer, pc
mouse: mouse/mice, computer mouse/computer mice
remote: remote, remote control, remote controller, wii remote, wiimote, wii mote, wii control, tv remote
remote: television remote, game controller, video game controller, wii controller, nintendo wii controller, controller
remote: wii game controller, nintendo wii remote, game remote, tv remote control, gaming controller
keyboard | laptop: keyboard, key board, computer keyboard, laptop keyboard
cell phone: cell phone, cellphone, cellular phone, cellular telephone, mobile phone, phone, smartphone, smart phone
cell phone: iphone, telephone, flip phone, mobile device, camera phone
microwave: microwave, microwave oven
oven: oven, stove, stovetop, stove top, stove top oven, pizza oven, gas range, kitchen range
oven | toaster | microwave: toaster oven
toaster: toaster
sink: sink, washbasin, wash basin
refrigerator: refrigerator, refridgerator, refrigerater, fridge, freezer, mini fridge
book: book, textbook, text book, cookbook, cook book, paperback
clock: clock, alarm clock, clocktower, clock tower, clock face
vase: vase, flower vase
person | vase | cup | bottle: pitcher
vase | cup | bottle: pitcher of/pitchers of, water pitcher, glass pitcher, blender pitcher
scissors: =scissors, scissor/scissor, pair of scissors/pairs of scissors
teddy bear: teddy bear, teddybear, teddy, stuffed bear, plush bear, stuffed animal, stuffed toy, stuffed teddy bear
teddy bear: stuffed teddy, plush toy, plush animal, stuffed animal toy, stuffed bear toy, build a bear
teddy bear: teddy bear doll
hair drier: hair drier, hair dryer, hairdryer, hairdrier, blow dryer, blow drier, blowdryer
toothbrush: toothbrush, tooth brush, electric toothbrush

nothing: man made, snow man/snow men, gingerbread man/gingerbread men, stick man/stick men, =iron man, men s room
nothing: men s restroom, men s bathroom, women s restroom, women s room, women s bathroom, ladies room, lady bug
nothing: children s, child s, child size, child sized, kid s room, kids room, baby s room, family room, table runner
nothing: cake batter, pancake batter, batter s box, batters box, family style, family size, crowd of, individual pizza
nothing: baby carrot, baby corn, baby bed, baby seat, family photo, family picture, family portrait, family kitchen
nothing: family home, children toy, baby stroller, baby carriage, baby blue, baby shower, baby doll, baby bottle
nothing: baby s bottle, guard rail, pedestrian crossing, pedestrian crosswalk, pedestrian bridge, pedestrian sign
nothing: tourist spot, tourist attraction, passenger view, passenger vehicle, butcher block, passenger side
nothing: passenger seat, passenger door, passenger window, passenger area, passenger section, cowboy hat, cowboy boot
nothing: chef hat, chef s hat, driver s seat, drivers seat, driver seat, driver s side, jockey box, pitcher s mound
nothing: pitchers mound, pitcher mound, player piano, cd player, dvd player, record player, music player, mp3 player
nothing: pilot light, guest room, guest bathroom, guest bedroom, bowler hat

nothing: bike rack, bicycle rack, bike path, bicycle path, bike lane, bicycle lane, bike trail, bicycle trail
nothing: bike shop, bicycle shop, bike stand, exercise bike, stationary bike, motorcycle helmet, bike helmet
nothing: bicycle helmet, motorcycle jacket, car seat, car wash, car park, car lot, car garage, cable car, bumper car
nothing: side car, truck stop, hand truck, jet ski, jet skis, jet skier, jet engine, jet stream, jet trail, jet way
nothing: plane ticket, bus stop, bus station, bus terminal, bus depot, bus lane, bus shelter, bus sign, bus route
nothing: train track, train tracks, train station, train yard, train platform, train depot, train rail, train line
nothing: train set, train bridge, train tunnel, train crossing, train signal, train light, train stop, train terminal
nothing: train trestle, train bell, train museum, cab of, boat house, boat dock, boat ramp, boat launch, boat slip
nothing: boat yard, gravy boat, banana boat, boat shoe, work bench, bench press, weight bench

nothing: bird house, bird bath, bird feeder, bird cage, bird s nest, birds nest, bird nest, birds eye, bird s eye
nothing: bird seed, rubber duck, duck tape, duck pond, crow bar, cat tail, cat walk, cat food, cat litter
nothing: cat s cradle, cat fish, cat bed, cat house, cat toy, cat tree, dog bed, pet bed, dog house, dog food
nothing: dog bowl, dog dish, dog park, dog toy, dog leash, dog collar, dog crate, dog kennel, dog treat, dog bone
nothing: dog sled, prairie dog, corn dog, down dog, hot dog stand, hot dog cart, hot dog bun, hotdog stand, hotdog bun
nothing: hot dog shop, pup tent, seal pup, sea horse, rocking horse, saw horse, horse trailer, horse shoe, horse back
nothing: horse stable, horse barn, lamb chop, lamb meat, rack of lamb, leg of lamb, leg of a lamb, sheep skin
nothing: cow hide, cow bell, cow print, red bull, bull dozer, bull pen, bull horn, elephant ear, elephant trunk
nothing: koala bear, bear claw, bear fruit, bears fruit, gummy bear, lion cub, tiger cub, zebra print, zebra stripe
nothing: zebra striped, zebra crossing, zebra crosswalk, zebra cross, giraffe print, baby goat, baby deer, baby pig
nothing: mother goat

nothing: umbrella stand, tie dye, tie dyed, tie die, railroad tie, rail road tie, rail tie, train tie, zip tie
nothing: twist tie, tie his shoe, ties his shoe, ties her shoe, tie down, tie up, to tie, luggage carousel
nothing: luggage claim, baggage claim, baggage carousel, luggage rack, luggage cart, luggage trailer, baggage cart
nothing: baggage trailer, luggage compartment, baggage area, luggage area, baggage handler, luggage belt, baggage belt
nothing: luggage conveyor, luggage tag, ball game, ball gown, ball field, ball park, ball room, ball cap, ball pit
nothing: balls of yarn, ball of yarn, meat ball, disco ball, crystal ball, christmas ball, popcorn ball, cheese ball
nothing: rice ball, yarn ball, ball machine, ball bearing, ball hopper, kite surfing, kite surf, kite boarding
nothing: kite board, kite festival, kite shop, at bat, up to bat, to bat, oven mitt, skateboard ramp, skate board ramp
nothing: skateboard park, skate board park, skateboard shop, skateboard track, skateboard course, skateboard rink
nothing: surfboard shop, surf board shop, surf board rack, snowboard ramp

nothing: bottle cap, bottle opener, world cup, cup holder, suction cup, cup board, pitch fork, fork lift
nothing: fork in the road, fork in a road, bowl cut, super bowl, fish bowl, banana bread, banana split, banana tree
nothing: banana leaf, banana leaves, banana plant, banana pudding, banana pepper, banana muffin, apple pie
nothing: apple sauce, apple juice, apple cider, apple tree, apple logo, apple store, apple product, apple device
nothing: apple brand, pine apple, big apple, apple crisp, sandwich shop, sandwich board, sandwich sign
nothing: ice cream sandwich, burger king, carrot top, pizza box, pizza cutter, pizza shop, pizza parlor, pizza place
nothing: pizza restaurant, pizza hut, pizza pan, pizza peel, pizza stone, pizza dough, pizza sauce, pizza tray
nothing: pizza plate, pizza wheel, pizza slicer, pizza kitchen, pizza joint, donut shop, doughnut shop, donut box
nothing: donut store, doughnut store, donut machine, doughnut machine, =dunkin donuts, pan cake, crab cake, rice cake
nothing: cake shop, cake pan, cake stand, cake plate, cake pop, cake mix, cake server, fish cake

nothing: chair lift, ski lift chair, wheel chair, flower bed, truck bed, bed of flowers, bed of lettuce, bed of rice
nothing: bed of greens, bed of vegetables, bed of salad, bed of grass, bed of hay, bed of clouds, bed of rocks
nothing: bed of spinach, bed of broccoli, bed of noodles, bed of pasta, bed of snow, river bed, garden bed, raised bed
nothing: bed room, bed and breakfast, bed side, bed frame, bed spread, pool table, ping pong table, table tennis
nothing: table cloth, table saw, end table, side table, night table, bedside table, changing table, water table
nothing: table lamp, desk lamp, desk top, front desk, help desk, toilet paper, toilet roll, toilet brush
nothing: toilet tissue, toilet plunger, toilet paper roll, roll of toilet paper, urinal cake, tv stand
nothing: television stand, tv show, tv dinner, tv station, tv cabinet, tv studio, tv tower, tv console, mouse pad
nothing: mouse trap, =mickey mouse, =minnie mouse, computer room, computer lab, computer bag, computer case
nothing: computer tower, computer game, computer store, computer equipment, computer part, computer accessory
nothing: computer paper, computer speaker, computer cable, computer station, computer generated, laptop case
nothing: laptop stand, keyboard instrument, piano keyboard, musical keyboard, music keyboard, remote area
nothing: remote sensor, remote location, remote field, remote road, remote place, remote region, remote island
nothing: remote beach, remote mountain, remote control car, remote control plane, remote control airplane
nothing: remote control helicopter, remote control truck, remote control boat, remote controlled, remote desert
nothing: phone booth, telephone booth, phone pole, telephone pole, telephone line, telephone wire, phone line
nothing: phone wire, pay phone, phone box, telephone box, telephone post, phone book, phone case, oven rack, oven mit
nothing: refrigerator magnet, book shelf, book shelves, book case, book store, book rack, book end, check book
nothing: o clock, clock work, hair dryer holder, toothbrush holder, tooth brush holder, toothbrush case, care bear
nothing: bear trap
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
