"""The words, tables and plots of the demo stories; ``corpus`` explains how they are read."""

from __future__ import annotations

Row = dict[str, str]


def words(text: str) -> list[str]:
    """Return the words of *text*."""
    return text.split()


def listed(text: str) -> list[str]:
    """Return the phrases of *text*, which stand between semicolons."""
    return [" ".join(phrase.split()) for phrase in text.split(";")]


def table(text: str) -> list[Row]:
    """Read a table: a line of keys, then the rows, cells separated by ``;``.

    A line with a deeper indent continues the row above it.
    """
    header, *rows = text.replace("\n        ", " ").strip().splitlines()
    return [dict(zip(listed(header), listed(row), strict=True)) for row in rows]


# ---------------------------------------------------------------------------------- characters

GIRLS = words("""
    Lily Anna Mia Rosa Ella Nina Zoe Ruby Clara Maya Sara Emma Lucy Ada Ivy Nora Tilly Daisy
    Hana Lena Pia Molly Poppy Freya Greta Wilma Bella Dora Flora Hazel Juna Kira Leila Mina
    Olive Penny Rita Sofia Tara Una Vera Willow Yara Amy Betty Cora Elsa Fern Gina Heidi
""")

BOYS = words("""
    Tom Ben Max Leo Sam Tim Jack Finn Noah Oscar Hugo Luca Milo Otto Paul Theo Anton Bruno
    Carl David Emil Felix George Henry Ivan Jonah Kai Liam Marco Nico Omar Peter Quinn Robin
    Simon Toby Victor Walter Yusuf Adam Billy Colin Danny Eddie Freddy Gus Harry Jasper Kofi
    Louie
""")

# Names nobody has teach the model to copy a name instead of recalling one.
ONSETS = words("B D F K L M N P R S T V W Z Br Dr Fl Gr Pl St Tr Ch Sh")
MIDDLES = words("ab ad al am an ar el en er il im in ip ob ol om on op ul um un up")
GIRL_ENDS = words("a ia ina ie ella ona")
BOY_ENDS = words("o us in er ik ert")

NAMES = {"girl": GIRLS, "boy": BOYS}
ENDS = {"girl": GIRL_ENDS, "boy": BOY_ENDS}
PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "self": "herself"},
    "boy": {"he": "he", "him": "him", "his": "his", "self": "himself"},
}

ANIMALS = table("""
    kind; hand; home
    fox; paw; cozy den
    bear; paw; warm cave
    rabbit; paw; snug burrow
    mouse; paw; tiny hole in the wall
    squirrel; paw; hollow tree
    hedgehog; paw; nest of dry leaves
    duck; wing; nest by the water
    frog; hand; little house of reeds
    kitten; paw; basket by the fire
    puppy; paw; wooden kennel
    lamb; hoof; red barn
    pony; hoof; quiet stable
    otter; paw; house by the water
    mole; paw; round room under the ground
    badger; paw; deep den
    beaver; paw; house of sticks
    monkey; hand; tall tree house
    panda; paw; bamboo hut
    deer; hoof; shady part of the woods
    raccoon; paw; old hollow log
    pig; hoof; neat little pen
    goat; hoof; shed on a hill
    penguin; wing; house made of snow
""")

CHILD_HOMES = listed("""
    small house; yellow house; little cottage; tall white house; house with a green door;
    house with a big garden; cottage at the end of the road; old stone house; red brick house
""")

ELDERS = table("""
    anelder; elder
    an old owl; the old owl
    a wise turtle; the wise turtle
    a kind farmer; the farmer
    a friendly baker; the baker
    an old gray horse; the old horse
    a tall crane; the tall crane
    a slow snail; the snail
    a white goose; the goose
    <his> grandma; Grandma
    <his> grandpa; Grandpa
    <his> mother; <his> mother
    <his> big sister; <his> big sister
    <his> uncle; <his> uncle
""")

TRAITS = words("""
    little little little little small young happy curious kind brave shy cheerful playful
    gentle clever quiet funny friendly busy merry polite
""")

# --------------------------------------------------------------------------- places and things

PLACES = table("""
    place; at; seat; spots
    the park; in the park; {on a bench|under a tree}; under a bench, behind a big tree, near the
        fountain, by the gate, under a bush
    the forest; in the forest; {on a log|under a pine tree}; under a fern, behind a log, on a mossy
        stone, between two roots, by a stream
    the meadow; in the meadow; {in the tall grass|under a tree}; in the tall grass, behind a rock,
        among the flowers, under a bush, by a fence
    the garden; in the garden; {on a bench|near the roses}; under a leaf, behind the shed, next to
        the roses, in a flower pot, by the wall
    the beach; on the beach; {in the warm sand|on a rock}; behind a rock, in the sand, next to a
        shell, by an old boat, under a towel
    the river; by the river; {on a flat stone|under a willow}; under the bridge, among the reeds, on
        a flat stone, behind a willow, in the mud
    the hill; on the hill; {in the grass|under a pine tree}; behind a stone, in the grass, under a
        pine tree, in a small hole, near the path
    the pond; by the pond; {on a bench|in the grass}; among the reeds, on a lily pad, under a bench,
        behind a log, near the ducks
    the farm; on the farm; {in the hay|on a bale of straw}; behind the barn, in the hay, under a
        cart, near the hens, by the well
    the orchard; in the orchard; {under an apple tree|in the grass}; under an apple tree, in a
        basket, behind a ladder, in the grass, by the wall
    the lake; by the lake; {on the dock|on a rock}; under a boat, on the dock, behind a rock, among
        the reeds, next to a log
    the playground; at the playground; {on a swing|on a bench}; under the slide, by the swings, in
        the sand, behind the fence, on a bench
""")

COLORS = words("red blue green yellow purple orange pink white brown golden silver black")

TOYS = words("""
    ball kite hat scarf drum bell ribbon blanket book cup lantern wagon whistle umbrella bag
    doll robot boat balloon marble button feather key mitten top flute star bucket truck
""")

FOODS = listed("""
    apple pie; loaf of bread; bag of nuts; basket of berries; honey cake; bowl of soup; plum
    cake; jar of jam; box of cookies; carrot cake; bunch of grapes; piece of cheese; pumpkin
    pie; sweet melon; plate of pancakes; bag of cherries
""")

GIFTS = listed("""
    necklace of shells; bird out of paper; frame for a picture; little wooden box; cup out of
    clay; bag of sweet herbs; crown of flowers; book of drawings; bell on a string; soft
    pillow; song with seven verses; lantern out of paper
""")

KIN = listed("Grandma; Grandpa; Mama; Papa; Aunt Rose; Uncle Fred; Aunt Tess; Uncle Jim")

HOBBIES = listed("""
    sing; dance; climb; paint; run; play outside; look at clouds; tell jokes; collect stones;
    pick flowers; watch the birds; jump in puddles; listen to stories; help others; build
    things; count the stars; play hide and seek; ask questions; explore; make up songs
""")

# ------------------------------------------------------------------------------ shared phrases

# An opening, and how the plot then says when it begins.
OPENINGS = [
    (
        "{Once upon a time|Once upon a time|Once upon a time|Long ago|Once}, {there was|there"
        " lived} a <trait> <kind> named <name>. <dwelling>{ <loves>|}",
        "one {<sky> |}<when>",
    ),
    (
        "{There was once|There once lived|In a <home> there lived} a <trait> <kind> {named|called} <name>. <loves>",
        "one {<sky> |}<when>",
    ),
    (
        "One {<fair> |}{day|morning}, a <trait> <kind> {named|named|called} <name> {woke up early"
        "|woke up with a smile|had a big breakfast|jumped out of bed|looked out of the window}."
        "{ <loves>| <dwelling>| <weather>|}",
        "that <when>",
    ),
    (
        "{Once upon a time|Once upon a time|Long ago}, {there was|there lived} a <trait> <kind>"
        " {who {loved|liked} to <hobby>|who lived in a <home>|in a <home>}. {<His> name was <name>"
        "|Everybody called <him> <name>}.{ <loves2>|}",
        "one {<sky> |}<when>",
    ),
    (
        "One {<fair> |}{day|morning}, a <trait> <kind> {woke up early|was in a good mood|wanted to"
        " play|went for a walk|had nothing to do}. {<His> name was <name>|Everybody called <him>"
        " <name>}.{ <loves>| <dwelling>| <weather>|}",
        "that <when>",
    ),
    (
        "<name> was a <trait> <kind>. {<dwelling> |}<loves>",
        "one {<sky> |}<when>",
    ),
    (
        "{It was a <fair> day. <weather>|<weather>} A <trait> <kind> named <name> {was in a good"
        " mood|felt happy|wanted to play|was ready for some fun}.",
        "that <when>",
    ),
]

PHRASES = {
    "fair": "{sunny|warm|bright|cool|windy|quiet|fine|lovely|beautiful|clear}",
    "weather": "{The sun was shining.|The sky was blue.|The birds were singing.|The air was fresh."
    "|A soft wind was blowing.|White clouds floated in the sky.|The flowers smelled sweet.}",
    "dwelling": "<He> lived in a <home>{ near <place>| not far from <place>| with <his> family|}.",
    "loves": "{<He>|<name>} {loved|liked} to <hobby>{ and to <hobby2>| all day long| every day|}.",
    "hero": "{<name>|<he>}",
    "loves2": "{<He>|<name>} {also|really} liked to <hobby2>.",
    "the": "{<name>|<name>|<name>|the <kind>|the <trait> <kind>}",
    "the2": "{<name2>|<name2>|<name2>|the <kind2>}",
    "glad": "{happy|glad|very happy|so happy|full of joy|proud and happy}",
    "sad": "{sad|very sad|upset|unhappy|close to tears}",
    "cried": "{cried|shouted|called|said}",
    "replied": "{said|said|replied|answered}",
    "smiled": "{smiled|laughed|grinned|clapped <his> <hand>s|jumped for joy|felt warm inside}",
    "night": "{That night|That evening|At bedtime}, <name> {fell asleep with a smile|told <his>"
    " family all about it|slept very well|thought about the day and smiled|was tired but <glad>}.",
    "end": "{<night>|<night>|It was {a|such a} {good|wonderful|lovely} day.|And they {all |}lived"
    " happily.|What a day it had been!|}",
    "friend": "{<his> friend <name2><title2>|a <trait2> <kind2> named <name2>}",
    "pals": "{From that day on|After that|From then on}, <name> and <name2> {were best friends"
    "|played together every day|always helped each other|were never lonely again}.",
    "meet": "{Just then|Soon|After a while|Then}, <friend> {came by|came along|walked up to <him>"
    "|passed by|came down the path}.",
    "thanks": '{"Thank you{, <name2>| so much|}!" <cried> <name>|'
    '"You are {so kind|a true friend|the best}{, <name2>|}!" <cried> <name>}.',
    "learned": "{<name>|<He>|That day <name>} {learned|knew|understood} that",
}

# --------------------------------------------------------------------------------------- plots

FEARS = table("""
    fear; when; sky; scene; why; brave; joy
    the dark; night; quiet; <his> lamp went out and the room was black; There may be a monster in
        here; looked under the bed, very slowly; There was only an old sock
    deep water; day; <fair>; everybody jumped into the lake to swim; The water is too deep for me;
        put one foot in the water, and then the other; The water was cool and nice
    thunder; evening; windy; a storm came and the sky went boom; The sky is angry with me; sat up
        and counted after each flash; Each boom was farther away than the last
    high places; day; <fair>; the others climbed up a tall tree; I will fall down; took one small
        step up, and then one more; From the top <he> could see the whole valley
    big dogs; day; <fair>; a big dog sat in the middle of the path; It will bite me; held out a
        <hand> and stood very still; The dog wagged its tail and licked <his> hand
    the old bridge; day; <fair>; the only way home went over the old bridge; The bridge will break;
        took a deep breath and walked across; The bridge did not even shake
    the tall slide; day; <fair>; the others went down the tall slide; It is much too high for me;
        sat down at the top and let go; It felt just like flying
    singing; day; <fair>; it was time to sing in front of everybody; They will all laugh at me;
        closed <his> eyes and began to sing; Everybody clapped at the end
    bees; day; <fair>; a fat bee flew around <his> head; It is going to sting me; stood still and
        let it fly; The bee only wanted to visit a flower
    the first day of school; day; <fair>; the school bell rang; Nobody will like me; opened the door
        and said hello; Soon <he> was laughing with the others
""")

RESCUES = table("""
    baby; trouble; aid; gift
    bird; had hurt its wing and could not fly; made a soft bed of grass and brought it some seeds;
        sang a song at <his> window every morning
    turtle; was lying on its back and could not get up; turned it over very gently; came to see
        <him> every spring
    duckling; was lost and could not find its mother; followed the tracks in the mud until they
        found the mother duck; came swimming every time <he> called
    butterfly; was stuck in a spider web; pulled the threads away one by one; danced around <his>
        head in the sun
    bee; had fallen into a puddle; held out a long leaf so that it could climb up; brought <him>
        sweet honey in the summer
    fish; was lying on the dry sand; carried it back to the water in a cup; jumped out of the water
        whenever <he> came by
    snail; could not cross the busy path; carried it to the other side; left a silver trail by <his>
        door
    owl chick; had fallen out of its nest; climbed up the tree and put it back; hooted softly every
        night
    ladybug; was trapped in a glass jar; opened the lid and let it out; often came and sat on <his>
        nose
    calf; had its head stuck in a fence; pushed the boards apart; ran to the fence whenever <he>
        came by
""")

MISTAKES = table("""
    item; oops; repair
    kite; flew it too close to a tree, and it tore; glued paper over the hole
    cup; ran too fast and dropped it, and it broke; put the pieces together with glue
    book; spilled juice on it, and the pages got wet; dried the pages in the sun
    drum; hit it much too hard, and it cracked; put a new skin on it
    paper crown; sat down on it by mistake, and it got flat; folded a new one with a big star
    pillow; pulled on it too hard, and the feathers came out; put the feathers back inside
    toy boat; pushed it too far, and it hit a stone; made a new sail out of a leaf
    scarf; pulled it through a thorn bush, and it got a hole; sewed a patch on it
    wagon; rode it down a steep slope, and a wheel came off; put the wheel back on
    lantern; swung it around, and the glass broke; put in a new piece of glass
""")

PROJECTS = table("""
    item; parts; flop; tip; success
    kite; paper, sticks and string; fell down as soon as the wind blew; It needs a long tail; flew
        high above the trees
    raft; logs and rope; came apart in the water; Tie the knots twice; floated like a leaf
    birdhouse; boards and nails; fell out of the tree; Hang it on a strong branch; was soon home to
        two little birds
    cake; flour, eggs and milk; came out flat and hard; You must bake it slowly; came out soft and
        sweet
    swing; a rope and a board; came loose at once; Make a double knot; went up and down all day long
    tent; sticks and an old sheet; fell down on <his> head; Push the sticks deep into the ground;
        stood even in the wind
    soup; carrots, beans and water; tasted of nothing at all; Add some salt and wait; smelled so
        good that everybody wanted a bowl
    drum; an old pot and some paper; tore at the first beat; Use something stronger than paper; went
        boom, boom, boom
    scarecrow; straw and an old coat; fell over on its nose; Give it a strong stick to lean on; made
        even the crows laugh
    snow fort; snow and more snow; fell down in the middle; Make the walls thick at the bottom; was
        as tall as a bear
    wreath; leaves, twigs and berries; came apart in <his> <hand>s; Weave the twigs, over and under;
        looked fit for a king
    flute; a hollow reed; made no sound at all; It needs a few small holes; made music as sweet as a
        bird
""")

CONTESTS = table("""
    contest; ready; mishap; rescue; finish
    race; ran up and down the path; tripped over a root and fell; stopped and helped <him2> up;
        crossed the line side by side
    drawing contest; drew pictures from morning to night; spilled all <his2> paint; gave <him2> half
        of <his> own paint; finished their pictures together
    baking contest; baked one cake after another; dropped <his2> last egg; gave <him2> an egg; put
        their cakes on the table together
    singing contest; sang to the birds; forgot the words and turned red; sang along to help <him2>;
        sang the last part together
    boat race; rowed around the lake; fell into the water with a splash; turned back and pulled
        <him2> out; came in last, in one boat
    kite contest; ran with <his> kite in the wind; lost <his2> string; cut <his> own string in two;
        flew their kites next to each other
    sand castle contest; built towers all week; lost <his2> castle to a big wave; helped <him2> to
        start again; built one great castle
    dancing contest; danced around the kitchen; stepped on a stone and hurt <his2> foot; let <him2>
        lean on <his> arm; danced slowly together
    jumping contest; jumped over every puddle; landed in the mud; wiped the mud off <his2> face;
        jumped at the same time
""")

RULES = table("""
    rule; wish; trouble; saved
    Do not go near the deep water; saw a pretty flower by the deep water and reached for it; <he>
        slipped and fell in; pulled <him> out with a long branch
    Do not eat the cookies before dinner; smelled the cookies and ate them all; <his> tummy began to
        hurt; made <him> a cup of warm tea
    Do not leave the path; saw a butterfly and ran after it; all the trees looked the same, and <he>
        was lost; led <him> back to the path
    Do not climb the old tree; saw a round red apple at the top and climbed up; <he> could not get
        down again; brought a ladder
    Do not touch the beehive; wanted to taste some honey and poked the hive; the bees came buzzing
        out; hid <him> under a big blanket
    Do not forget your coat; thought the sun was warm enough; a cold rain began to fall; wrapped
        <him> in a dry coat
    Do not stay out after dark; played one more game, and then one more; it was so dark that <he>
        could not see the way; came with a lantern
    Do not open the gate; opened the gate just a little; all the sheep ran out; whistled until the
        sheep came back
""")

NOISES = table("""
    noise; place0; guess; truth; after
    tap, tap, tap; at the window; a ghost; a branch that moved in the wind; tied the branch back
    squeak, squeak; behind the door; a monster; a tiny mouse looking for crumbs; gave it some cheese
    hoo, hoo; up on the roof; a witch; a baby owl that missed its mother; stayed with it until its
        mother came
    drip, drip; in the kitchen; a sea monster; the tap, which was not quite closed; turned it off
    scratch, scratch; under the floor; a dragon; a hedgehog making its bed; gave it some dry leaves
    boom, boom; in the shed; a giant; a goat that wanted to get out; opened the door for it
    meow, meow; in the big tree; a tiger; a kitten that could not get down; helped it down
    rustle, rustle; in the bushes; a wolf; a rabbit eating its dinner; said good night to it
    ding, ding; in the garden; a fairy; a cat with a bell on its neck; stroked its soft fur
""")

SKILLS = table("""
    skill; fall; hint; done
    swim; swallowed a lot of water; Kick with your legs and look ahead; swam all the way across
    ride a bike; fell into a bush; Look far ahead and keep going; rode around the whole square
    whistle; only blew air; Make your lips small and round; whistled a whole song
    skate; landed on <his> bottom; Bend your knees a little; slid over the ice like a swan
    read; mixed up all the letters; Say each sound, one by one; read a whole page out loud
    juggle; dropped every ball; Start with just two balls; kept three balls in the air
    tie a knot; got all tangled up; Go around, and then through the middle; tied a perfect knot
    play the flute; made an awful squeak; Blow softly, like a little wind; played a sweet tune
    catch a ball; missed it every time; Keep your eyes on the ball; caught it with one <hand>
    dance; stepped on everybody's feet; Listen to the music and count to three; danced until the
        moon came up
""")

SEEDS = table("""
    seed; grown; yield
    sunflower seed; sunflower; It was taller than the house
    pumpkin seed; pumpkin plant; It gave a pumpkin as round as the moon
    apple seed; apple tree; Years later it was full of red apples
    strange black seed; plant with blue flowers; Nobody had ever seen such flowers
    bean; bean plant; It climbed all the way up to the roof
    rose seed; rose bush; It smelled sweeter than honey
    carrot seed; carrot plant; The carrot was so big that it took two to pull it out
    tiny acorn; oak tree; One day the birds would build nests in it
""")

GAMES = table("""
    idea; play; fun
    build a fort; put blankets over the chairs and crawled inside; It was a castle, and then a cave,
        and then a ship
    put on a play; dressed up in old hats and coats; One was the king, and one was the dragon
    bake cookies; mixed and rolled and cut out little stars; There was flour on every nose
    make paper boats; folded a whole fleet of boats; The boats sailed down the stream by the door
    tell stories; took turns to tell a story by the fire; One story was so funny that they fell off
        their chairs
    play music; took pots and spoons and made a band; It was very loud, and they loved it
    paint pictures; painted the sun, because they could not see it; It was big and yellow, with a
        smile
    hunt for treasure; drew a map and looked in every corner; In an old box they found a forgotten
        toy
    jump in puddles; put on boots and ran outside; Splash! The water went up to their knees
""")

LOST = """
<opening> <name> had a <color> <toy>. {It was a gift from <his> {grandma|grandpa|aunt}.|<He> took it
everywhere.|It was <his> favorite thing in the world.|<He> had found it long ago.}

<Day>, <he> {took|carried|brought} the <toy> <to>. {<weather> |}<name> {ran and played|played all
kinds of games|had a lot of fun}. {But when|When} it was time to go home, the <toy> was {gone|not
there}! {"Oh no! Where is my <toy>?" <cried> <the>.|"My <toy>! I lost my <toy>!" <cried> <the>.}
{<He> looked <spot1>, but it was not there.|<He> sat down and began to cry.|<He> sat <seat> and felt
<sad>.}

<meet> {"What is wrong{, <name>|}?"|"Why are you so sad?"|"Why are you crying?"} asked <the2>. "I
{lost|can't find} my <color> <toy>," <replied> <name>. "{Don't worry.|Don't cry.|I will help you.}
We will {find it|look for it} together," said <name2>. They looked <spot2>. {It was not there.|No
<toy>. |Nothing!} {Then|At last} they looked <spot3>, and {there it was|something <color> was
there|<name2> saw something <color>}. {"Is this your <toy>?" asked <name2>. "Yes{, it is|, yes|}!"
<cried> <name>. |"Here it is!" <cried> <the2>.}

<name> {hugged|held|picked up} the <toy> {tightly |}and <smiled>. <thanks> {<learned> {a good friend
is worth more than any <toy>|looking is easier with a friend|it is good to ask for help}.|<pals>}
<end>
"""

SHARE = """
<opening>

<Day>, <name> {had|got|was given} a {big |fresh |}<food>. {It smelled so good!|It looked so
good!|<He> could not wait to eat it.} <He> {went|walked} <to> and sat down <seat>. "{I will eat it
all by myself |This is all for me|What a fine lunch}," <he> {said|thought}.

<meet> {<He2> looked tired and hungry.|<His2> tummy made a loud noise.|<He2> looked at the food and
said nothing.} {"I have not eaten all day," said <the2>.|"I {lost|forgot} my lunch," said
<the2>.|"That smells so good," said <the2>.} {At first, <name> did not want to share.|<Hero> looked
at the <food>. <He> wanted it all.|<Hero> thought about it for a moment.} {But then <he> saw {how
sad <name2> was|the look on <name2>'s face}.|But it is no fun to eat alone.} "{Come and sit with
me|Please have some|Half of it is for you}," said <the>. {They ate together and told jokes.|They ate
every bite and laughed.|It tasted even better than before.}

{The next day|Later|A few days later}, <name> {was hungry and had nothing to eat|had no lunch}.
{Guess who came? |}<name2> came {running |}with a <food2>. "{You shared with me, so I will share
with you|Now it is my turn to share|Half of this is for you}!" <he2> said. <name> <smiled>.
{<learned> {sharing makes everything taste better|when you share, you get more than you
give}.|<pals>} <end>
"""

FEAR = """
<opening> {But there was one thing: |But }<name> was {afraid|scared|very afraid} of <fear>.

<Day>, <scene>. {<name>'s heart beat fast.|<Hero> began to shake.|<Hero> wanted to run away.|<Hero>
could not move.} "I am scared," <he> {said|whispered|said in a small voice}. "<why>!"

{<Elder> sat down next to <him>.|<Anelder> {saw <him>|heard <him>} and came {near|closer}.} "{It is
all right to be afraid|Everybody is afraid sometimes|I was afraid of <fear> too}," said <elder>.
"{Just try, one little bit at a time|Being brave means trying even when you are scared|I will be
right here with you}." {<Hero> thought about that.|<Hero> nodded.|<Hero> swallowed hard.} Then <he>
<brave>. {<joy>!|And do you know what? <joy>!}

"{I did it|Look, I am not afraid|It was not so bad}!" <cried> <the>. "{I knew you could do it|I am
proud of you|You were very brave}," said <elder>. {From that day on, <name> was not afraid of <fear>
anymore. |<learned> {being brave means trying|fear gets smaller when you face it|it helps to talk
about it}.} <end>
"""

MISTAKE = """
<opening> <His> best friend was {<name2>, a <trait2> <kind2>|a <trait2> <kind2> named <name2>}.
<name2> had a {beautiful |new |}<color> <item>.

<Day>, they {met|played} <at>. "{May|Can} I {try|use|hold} your <item>?" asked <name>. "{Yes, but
please be careful|Of course, but be careful}," said <name2>. But <name> {was not careful|did not
listen|forgot}. <He> <oops>. {"Oh no!" whispered <name>.|<Hero> felt <sad>.|<name>'s face turned
red.} {<He> wanted to hide.|<He> hid the <color> <item> <spot1> and ran home.|"I will say that the
wind did it," <he> thought.}

{But <his> tummy felt funny.|But <he> could not eat and could not play.|But <he> could not look
<name2> in the eye.} {<Anelder> saw <his> face.|<He> told <anelder> about it.} "{Always tell the
truth, even when it is hard|A friend will understand|You will feel better if you say sorry}," said
<elder>. So <name> went to <name2> and said, "{I am sorry|I am so sorry}. I {broke|ruined} your
<item>. {It was my fault|I should have been careful}."

{<name2> was sad at first, but then <he2> smiled.|<name2> was quiet for a moment.} "{Thank you for
telling me |It was brave of you to tell me|I forgive you}," <he2> said. {Together they|The two of
them} <repair>. {It looked even better than before.|It was almost as good as new.} {<learned> {it is
best to tell the truth|saying sorry can fix many things|everybody makes mistakes}.|<pals>} <end>
"""

RESCUE = """
<opening>

<Day>, <he> {went|walked|skipped} <to>. {<weather> |}{Suddenly|Then|All at once}, <he> heard a
{small|soft|sad} {sound|voice|cry}. {<Hero> looked around. |}<Spot1>, there was a {little |tiny
|small }<baby>. It <trouble>. "{You poor thing|Don't be afraid|Oh, poor little <baby>}!" said <the>.
"{I will help you|I want to help you|Let me help}."

{But how? <name> {thought and thought|thought hard}.|<Hero> knew that <he> had to be very
careful.|<He> ran to get <anelder>. "{Be gentle and go slowly|You can do it}," said <elder>.} Then
<he> <aid>. {It took a long time, but <name> did not give up.|<He> was as gentle as <he> could
be.|The <baby> held very still.} {At last|In the end}, the {little |}<baby> was {safe|fine|happy}
again. "{Thank you, <name>|You saved me|I will never forget you}!" it {said|seemed to say}.

{<Hero> <smiled>. |<Hero> waved goodbye. |}{After that|From that day on}, the <baby> <gift>.
{<learned> {even small ones can be good friends|a little kindness goes a long way|it feels good to
help}.|They were friends for a long time.} <end>
"""

MAKE = """
<opening>

<Day>, <name> had an idea. "I want to make a <item>!" <he> said. <He> {found|got|looked for} <parts>
and {went to work|began to work|started at once}. {<He> worked all {morning|day}.|<He> worked very
hard.} But the <item> <flop>. {"Oh no!" <cried> <name>.|<Hero> felt <sad>.|"It is no good," sighed
<the>.}

{<He> tried again, but it was no better.|<Hero> wanted to give up.|<Hero> kicked a stone.} <meet>
{"What are you making?" asked|"Don't give up, <name>," said|"That is a good start," said} <the2>.
"{I know what to do. |Let me think. |}<tip>." {<name> and <name2> started again.|So they tried once
more, together.|"Let us try that!" said <name>.} {They worked slowly and carefully.|They laughed and
sang as they worked.}

This time, the <item> <success>! "{We did it|Look at that|It works}!" <cried> {<name>|<name2>|they
both}. {Everybody came to see it.|They danced around and around.|<Hero> <smiled>.} {<learned> {it is
good to try again|two heads are better than one|mistakes help us learn}.|<pals>} <end>
"""

RAIN = """
<opening>

<Day>, <name> wanted to {play <at>|go <to>|meet <his> friend <at>}. But {it began to rain|dark
clouds came, and it rained|the rain came down, drip, drop, drip}. {"The day is ruined,"
{said|sighed} <the>.|"I don't like rain!" <cried> <the>.|<Hero> looked out at the rain and felt
<sad>.} {It rained and rained.|The rain did not stop.|}

{Then there was a knock at the door.|Knock, knock! Somebody was at the door.} It was <friend>, {all
wet|with a big smile|under a <color> umbrella}. "{I am bored too|Rain is no fun alone|I have an
idea}," said <name2>. "{Let's|We could} <idea>!" So they <play>. <fun>. {They laughed until their
tummies hurt.|The time went by so fast.|They forgot all about the rain.}

{At last|After a while|When they looked out again}, the {rain stopped|sun came out} and there was a
{big |bright |}rainbow {over <place>|in the sky}. "{Rain is not so bad|This was the best day|I hope
it rains again tomorrow}!" said <the>. {<learned> {you can have fun in any weather|a friend can make
any day bright}.|<pals>} <end>
"""

CONTEST = """
<opening>

{Every year, there was a <contest> <at>.|Soon there would be a <contest> <at>.} <name> wanted to win
{the {<color> ribbon|golden cup|big prize}|more than anything}. Every day <he> <ready>. {"I will be
the best of all!" <he> said.|"I hope I will win," <he> told <his> {mother|father}.}

{The big day came.|Then the big day was here.} {Everybody was there.|<weather>} <Friend> was there
too. {"Good luck, <name>!" said <name2>.|"May the best one win," said <the2>.} {One, two, three,
go!|The <contest> began.} {<Hero> was doing very well|<Hero> was ahead of everybody}. But then
<name2> <mishap>. {"Oh no!" <cried> <the2>.|<name2> began to cry.} <name> {looked at the
prize|wanted to win so much}. Then <he> {looked at <name2>|thought of <his> friend}, and <he>
<rescue>.

{In the end|At the end}, they <finish>. {They did not win, but|Somebody else won, but} everybody
{clapped|cheered} {for them|loudly}. "{Why did you help me|Why did you stop}{, <name>|}?" asked
<name2>. "{You are my friend |Friends are better than a prize|It is no fun to win alone}," <replied>
<the>. {<learned> {kindness is better than winning|being a good friend is the best prize}.|<pals>}
<end>
"""

NEWCOMER = """
<opening>

<Day>, a {new |}<kind2> came to live near <place>. <His2> name was <name2>. <He2> was {very
|}{quiet|shy} and {sat alone <seat>|played alone <spot1>}. {The others did not {talk to|play with}
<him2>.|Nobody knew what to say to <him2>.} {"<He2> looks {lonely|sad}," thought <name>.|<Hero> saw
that <he2> looked {lonely|sad}.}

<name> {went over|walked up to <him2>} {with <his> <color> <toy>|and smiled}. "{Hello|Hi}! I am
<name>. {What is your name|Do you want to play}?" <he> asked. {<the2> looked up.|At first, <name2>
said nothing.} "{I am <name2>|My name is <name2>}. {I don't know anybody here|I miss my old home|I
would like to play}," <he2> said {softly|in a small voice}. "Now you know me!" said <name>. {"{Let's
play|Come and play} {together|with my <toy>|hide and seek}!"|"I will show you {<place>|all the best
places}."}

So they {played|ran and laughed} <at> {until the sun went down|all day}. {<name2> was very good at
games.|<name2> told funny jokes.|<name2> knew many songs.|<name2> was not shy anymore.} {Soon all
the others came to play too.|The others saw how much fun they had.} "{I am glad I came here|Thank
you for being my friend|Now this feels like home}," said <the2>. {<learned> {a kind word can start a
friendship|a new friend is just one hello away}.|<pals>} <end>
"""

RULE = """
<opening>

<Day>, <his> {mother|father|grandma} said, "<rule>." "{I won't|I promise|I will be good}," said
<name>. {<He> went out to play.|Then <he> was alone.|<He> really meant it.} But {soon|after a while}
<he> <wish>. {"Just this once," <he> thought.|"Nobody will know," <he> thought.|}

{Then it happened:|Oh no!|Suddenly,} <trouble>. "{Help! Help!|Please help me!|Is anybody there?}"
<cried> <the>. {<Hero> was {scared|very sorry}.|A tear ran down <his> cheek.} {Luckily|By good
luck}, {<friend> was near|<friend> heard <him>|<friend> came by}. "{I am here|Don't worry|Hold on},
<name>!" <cried> <the2>. <name2> <saved>. {Soon <name> felt better.|At last, everything was fine.}

{<Hero> went home and told the truth.|At home, <name> hung <his> head.} "I am sorry. I {did not
listen|broke my promise}," <he> said. {"I am glad that you are safe,"|"Thank you for telling me,"|"I
was so worried,"} was the {soft |kind |}answer, and there was a big hug. {<learned> {rules are there
to keep us safe |it is important to listen|a promise should be kept}.|After that, <name> always
listened.} <end>
"""

NOISE = """
<opening>

<Day>, <name> was {in bed|almost asleep|under <his> blanket}. Then <he> heard something <place0>.
"<noise>," it went. {<Hero> sat up.|<Hero> opened <his> eyes wide.|<Hero> pulled the blanket over
<his> head.} "{What is that|Who is there|What could it be}?" <he> whispered. "<noise>," it went
again. {"Maybe it is <guess>!" <he> thought.|It sounded like <guess>!}

{<He> went to wake <anelder>.|<He> called for <anelder>.} "{Let us go and look|We will find out
together|Take the lamp and let us see}," said <elder>. {They went very slowly.|Step by step, they
came nearer.|<Hero> walked on the tips of <his> toes.} "<noise>!" {<Hero> held the lamp up
high.|<name>'s heart beat fast.} And what was it? It was not <guess> at all. It was only <truth>!

<name> {laughed and laughed|had to laugh|laughed out loud}. "{And I was so afraid|How silly of
me|Now I am not afraid anymore}!" <he> said. <He> <after>. {Then <he> went back to bed|After that,
it was time to sleep}{, and soon <he> was fast asleep|}. {<learned> {things are less scary when you
look at them|it is better to look than to guess}.|From then on, <he> was never afraid of noises at
night.|}
"""

SKILL = """
<opening> But <he> {could not|did not know how to} <skill>. {All <his> friends could do it.|Even the
smallest ones could do it.|It made <him> <sad>.}

<Day>, <name> {went|walked} <to> {to try|to practice}. <He> tried, but <he> <fall>. {Somebody
laughed.|"This is too hard!" <cried> <the>.|<He> tried again, and it was even worse.} {"I will never
{learn|do it}," <he> sighed.|<He> sat down <seat> and did not want to try anymore.}

<Friend> {sat down next to <him>|saw it and came over}. "{I could not do it at first|It took me a
long time too|Nobody can do it the first time}," said <name2>. "<hint>. {I will show you|Try it
again|Watch me}." {So <name> tried again, and again.|They practiced every day.|Day after day, <name>
tried.} {<He> got a little better each time.|It was hard, but <name> did not stop.}

{Then, one day, it worked!|And then it happened!|At last, it worked!} <name> <done>. "{I can do
it|Look at me |Did you see that}!" <cried> <the>. {<name2> clapped and clapped.|"I knew it!" said
<name2>.} {<learned> {practice makes things easier|you should never give up|everybody has to start
small}.|{Now|Later} <name> showed the {little|small} ones how to <skill>.} <end>
"""

SEED = """
<opening>

<Day>, <anelder> gave <him> a <seed>. "{Plant it and take good care of it|Put it in the ground and
be patient}," said <elder>. <name> {planted it|put it in the ground} {in the garden|behind the
house|in a sunny place|by the door}. <He> gave it some water. {Then <he> sat down to wait.|"Grow,
little one," <he> said.|Every day <he> came to look.}

{The next day|Two days later}, there was nothing. {"Why does it not grow?" asked <the>.|"Maybe it is
asleep," <name> thought.} <Friend> laughed. "{It will never grow|There is nothing there|You are
wasting your time}," said <name2>. But <name> {did not give up|gave it water every day|sang to it
every morning}. {The sun shone and the rain fell.|Days went by, and then weeks.}

{Then, one morning|And one day}, {there was a tiny green leaf|something green came out of the
ground}! "{Look |Come and see|It is growing}!" <cried> <the>. It grew {and grew|taller every day}
until it was a {beautiful |fine |strong }<grown>. <yield>. {"I was wrong," said <name2>. "You were
right to wait."|"I am sorry that I laughed," said <name2>.} {<learned> {good things take time|it
pays to be patient|small things can grow big}. |Together they sat in the sun and looked at it.}
<end>
"""

FOUND = """
<opening>

<Day>, <name> was {walking|playing} <at>. {<weather> |}Something <color> {was lying|lay} <spot1>. It
was a <toy>! {"How pretty!" said <the>.|"I have always wanted a <toy>!" <cried> <the>.|<Hero> picked
it up and looked at it.} {"Now it is mine," <he> thought.|<He> wanted to keep it.|<He> played with
it for a while.}

{But then <he> heard somebody cry.|On the way home, <he> heard somebody cry.} It was a <trait2>
<kind2>{ <spot2>|}. {<His2> name was <name2>.|Everybody called <him2> <name2>.} "What is wrong?"
asked <name>. "I lost my <toy>," said <name2>. "{It is <color>, and I love it so much|My
{grandma|grandpa} made it for me|I have looked everywhere}." <name> {looked at the ground|hid the
<toy> behind <his> back}. {It was such a pretty <toy>.|<He> did not want to give it back.} But <he>
{knew what was right|saw the tears on <his2> face}. "{Here it is|Is this your <toy> |Don't cry, I
found it}!" said <the>.

{<name2> jumped for joy.|<name2> could not believe it.|<name2> dried <his2> tears.} "{Thank
you|Thank you for being honest|You are so kind}! {Come and play with me|Let's play together|We can
share it}," <he2> said. {They played with the <color> <toy> all day.|They played together until
dinner.} {<learned> {a friend is better than a <toy>|it feels good to be honest}.|<pals>} <end>
"""

GIFT = """
<opening> {Tomorrow was <kin>'s birthday.|It was almost <kin>'s birthday.} <name> wanted to give
<kin> {something special|the best gift of all|a surprise}. {But <he> had no money.|But what could it
be?}

<Day>, <he> went <to> to look for {a gift|something nice}. <Spot1>, <he> found a <color>
{stone|feather|shell|leaf |flower}. {"It is pretty, but it is too small," <he> said.|"That is nice,
but it is not enough," <he> thought.} <meet> "{What are you looking for|Can I help you}{, <name>|}?"
asked <the2>. "I need a gift for <kin>," <replied> <name>. {They thought hard.|They thought for a
long time.} "{You could make something|The best gifts are made by hand|Let us make something
together}," said <name2>.

So they {sat down <seat>|went to work} and made a <made>. {It took all day.|They worked side by
side.|It was a little crooked, but it was pretty.} {The next day|In the morning}, <name> gave it to
<kin>. "{You made this for me|Is this for me}?" said <kin>{ with shining eyes|}. "{It is the best
gift in the world|I will keep it forever|I love it}!" {There was a big hug and a big slice of
cake.|<Hero> <smiled>.} {<learned> {the best gifts come from the heart|love is worth more than
money}.|} <end>
"""

NIGHT = {"when": "night", "sky": "{dark|quiet|cold}"}
GRAY = {"sky": "{gray|cloudy|cool}"}

# A plot, the rows of details it takes one of, and what else it changes in the story.
PLOTS: list[tuple[str, list[Row], Row]] = [
    (LOST, [{}], {}),
    (SHARE, [{}], {}),
    (FEAR, FEARS, {}),
    (MISTAKE, MISTAKES, {}),
    (RESCUE, RESCUES, {}),
    (MAKE, PROJECTS, {}),
    (RAIN, GAMES, GRAY),
    (CONTEST, CONTESTS, {}),
    (NEWCOMER, [{}], {}),
    (RULE, RULES, {}),
    (NOISE, NOISES, NIGHT),
    (SKILL, SKILLS, {}),
    (SEED, SEEDS, {}),
    (FOUND, [{}], {}),
    (GIFT, [{}], {}),
]
