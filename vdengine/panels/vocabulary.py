"""Word lists of the topic matcher: key terms of the built-in topics, words without subject matter, everyday words."""

from __future__ import annotations

# By topic of the built-in panel `values`; stemmed as any text is. Each is about its topic wherever it is used.
KEY_TERMS: dict[str, tuple[str, ...]] = {
    "immigration": (
        "immigrant", "immigrate", "immigration", "illegal alien", "migrant", "migration policy", "refugees",
        "asylum seeker", "deport", "deportation", "foreigners", "border wall", "open borders", "border control",
        "path to citizenship", "undocumented", "naturalisation", "work visa",
    ),
    "abortion": (
        "abortion", "pro-life", "pro-choice", "unborn", "fetus", "foetus", "roe v wade",
        "terminate a pregnancy", "unwanted pregnancy",
    ),
    "climate change": (
        "climate change", "global warming", "greenhouse gas", "carbon emissions", "carbon tax", "carbon footprint",
        "fossil fuel", "net zero", "renewable energy", "paris agreement", "environmental issue", "climate crisis",
        "climate policy", "sea levels",
    ),
    "economic policy": (
        "minimum wage", "living wage", "basic income", "universal income", "social income", "income tax", "wealth tax",
        "sales tax", "tax the rich", "tax cut", "tax base", "higher taxes", "lower taxes", "taxation",
        "income inequality", "wealth inequality", "economic inequality", "redistribute", "redistribution", "capitalism",
        "socialism", "communism", "free market", "trade union", "labour union", "labor union", "welfare state",
        "welfare benefits", "unemployment", "unemployment rate", "universal healthcare", "privatise", "privatize",
        "nationalise", "nationalize", "billionaires", "austerity", "inflation", "tariffs", "public spending",
        "government spending", "price control", "rent control", "deregulation", "subsidies", "public debt",
    ),
    "family relations": (
        "divorce", "gender roles", "stay at home mother", "stay at home mom", "working mother", "single mother",
        "single parent", "unmarried couple", "arranged marriage", "traditional family", "family values", "spank",
        "in laws", "elderly parents", "filial", "raise children", "raise a child", "housewife",
    ),
    "religion": (
        "religion", "religious", "christianity", "christian", "islam", "muslim", "judaism", "hinduism", "hindu",
        "buddhism", "atheism", "atheist", "agnostic", "bible", "quran", "jesus", "allah", "church", "mosque",
        "afterlife", "prayer", "spirituality", "existence of god", "god exist", "believe in god",
    ),
    "elections and parties": (
        "election", "elections", "political party", "political parties", "voter id", "voting rights", "electoral",
        "ballot", "vote for", "republican party", "democratic party", "republicans", "democrats", "conservative party",
        "labour party", "gerrymandering", "referendum", "voter turnout", "campaign finance",
    ),
    "Israel and Palestine": (
        "israel", "israeli", "palestine", "palestinian", "gaza", "hamas", "zionism", "zionist", "west bank",
        "two state solution", "idf", "netanyahu",
    ),
    "gender and LGBTQ+ rights": (
        "gay", "lesbian", "lgbt", "lgbtq", "transgender", "trans people", "trans women", "trans men", "homosexual",
        "homosexuality", "same sex", "gender identity", "gender reassignment", "sexual orientation", "bisexual",
        "nonbinary", "non-binary", "drag queen", "homophobic", "homophobe", "transphobic", "their gender",
    ),
    "death penalty": (
        "death penalty", "capital punishment", "death row", "death sentence", "lethal injection", "electric chair",
    ),
    "race and racism": (
        "racism", "racist", "racial", "racially", "affirmative action", "black lives matter", "black people",
        "white people", "brown people", "n word", "white supremacy", "white supremacist", "segregation", "slavery",
        "reparations", "people of color", "people of colour", "ethnic minority", "skin color", "skin colour",
        "police brutality", "reverse racism", "white privilege",
    ),
}  # fmt: skip

# Words without subject matter, beside `words.content_words`'s.
FILLERS = frozenset(
    """i'd i've i'll i'm he'd he's she'd she's they'd they've they're we'd we've we're you'd you've you're it's that's
    there's what's who's let's don't doesn't didn't can't won't wouldn't shouldn't couldn't isn't aren't wasn't weren't
    hasn't haven't hadn't him his she her hers himself herself themselves itself myself yourself one ones say said tell
    told want wants thing things something anything really well even still much many rather ever never always often
    both other others each every either side sides view views""".split()
)

# Everyday words: in a topic's vocabulary they have half their weight, and none of them decides by itself.
EVERYDAY = """
    able accept access account accountability act action activity actual add additional address adult advantage
    advice affect afford affordable after again against age agency aging ago agree ahead aim air allow ally almost
    alone along already although always american amount analysis animal annual another answer anyone anything appear
    apply approach arab arabs area argue arm arms army around arrive art article artist ask asleep assume attack
    attempt attention author authority available average avoid award aware away baby back bad balance ball band bank
    bar base basic bear beat beautiful became become bed begin behavior behaviour behind belief belong below benefit
    best better between beyond bias big bill bird black blood blue board boat body bomb bond book border born both
    bottom box boy brain branch brand brave break brief bring british broad brother brown budget build building bus
    business busy button buy call camera camp campaign capital car carbon card care career careful carry cars case
    cast catch cause cell center central centre century certain chair challenge chance change character charge cheap
    check child children choice choose church citizen city civilian claim class clean cleaner clear clearly client
    climb close clothes coach coast code coffee cold collect college color colour come comfort command comment
    commit common community company compare competition complete computer concern condition conference confirm
    connect conscious consider consumer contain content context continue contract contribute control conversation
    cook cool copy cost count couple course court cover cream create credit creed crime cross crowd cry culture cup
    current custom customer cut daily damage dance danger dark data date daughter day dead deal death debate debt
    decade decide decision deep defence defense degree deliver demand deny depend describe deserve design despite
    detail determine develop development device die diet difference different difficult dinner direct direction
    director discover discuss discussion disease distance district divide doctor dog door double doubt down draw
    dream dress drink drive driver drop drug dry due during duty each early earn earth easily east easy eat economic
    economy edge education effect effective effort eight either electric electricity element else email empire
    employ employee empty end enemy energy engine enjoy enough ensure enter entire environment equal especially
    establish even evening event ever every everyone everything evidence exact example except exist expect expensive
    experience expert explain express extra eye face fact factor fail failure fair fall family famous fan far farm
    farmer fast fat father fear feature feed feel feeling fellow female few field fifth fight fighter figure file
    fill film final finance financial find fine finger finish fire firm first fish fit five fix flag flat flight
    flood floor flow flower flows fly focus follow food foot force foreign forest forget form formal former forward
    fossil found four frame free freedom freely fresh friend front fruit fuel full fun function fund funds funny
    further future gain game garden garment gas gather general generally generation gift girl glass global goal gold
    gone governor grade grand grandmother grandparent grant grass great green grid ground group grow growth guard
    guess guest guide guilty gun guy hair half hall hand hang happen happy hard harm hat hate head health healthy
    hear heart heat heavy height held hello help here hide high hill hire historic history hit hold holiday home
    honest hope horse hospital host hot hotel hour house housing however huge human hundred hurt husband ice ideal
    identify image imagine impact importance important impose improve include income increase indeed independent
    individual industry influence inform information innocent inside instead institution instrument insult insurance
    intend interest internal international internet interview introduce invest investment invite involve island
    issue item jail jewish jews job join joint joke judge jump junior jury keep key kid kids kill killer killing
    kind king kitchen knee knife knock know knowledge labor labour lack lady lake land language large last late
    later laugh launch law lawyer lay lead leader learn least leave left leg legal lesson letter level lie life lift
    light like likely limit line link list listen literature little live living load loan local locate location long
    look lose loss lost lot love low lunch machine magazine main maintain major majority male man manage manager
    many map mark market marriage married marries marry mass master match material matter meal mean meaning measure
    meat media medical medication medicine meet meeting member memory mention message metal method middle mile
    military milk million mind mine minister minority minute miss mission mistake mix model modern moment money
    month moral morning mother mountain mouth move movement movie multiple murder murderer murders music name narrow
    nation national native natural nature near nearly necessary neck need neighbor neighbour neighbourhood neither
    network never new news next nice night nine noise none normal north nose note nothing notice novel number nurse
    object obtain occasion occur ocean offer office officer official often oil old older once one online open
    operate operation opportunity oppose option orange order ordinary organ organisation organization organize
    origin original other others otherwise outside oversea overseas own owner page pain paint pair pan paper parent
    park part particular particularly partner party pass passenger past path patient pattern pay payment peace peer
    pen penalty per percent perfect perform perhaps period permission permit person personal persuade phone photo
    phrase physical pick picture piece pill pilot pink place plan plane plant plastic plate platform play player
    please pleasure plenty plus pocket poem point police policy political politics poll pollute poor pop popular
    population position positive possible post postal potential pound power practical practice prefer preference
    prepare presence present president press pressure pretty prevent previous price print prior priority prison
    private prize probably problem process produce product production profession professional professor profit
    program programme project promise promote pronoun proper property proportion propose protect protection prove
    provide provider public publish pull punishment purchase pure purpose push put qualify quality quarter queen
    question quick quickly quiet quite race radio rain raise range rate rather reach react read reader ready real
    reality realize reason receive recent recipe recognise recognize recommend record recover red reduce refer
    reflect refuse regard region register regular regulation relate relation relationship relative relatively
    release relevant reliable relief remain remember remorse remove rent repair repeat replace reply report
    represent representative republic request require research reserve resident resource respect respond response
    responsibility responsible rest restaurant restrict result return reveal review reward rich ride ring rise risk
    river road rock rocket role roll roof room round route row royal rule run rural safe safety sail salary sale
    salt same sample sand save say scale scene schedule school science scientist score sea search season seat second
    secret section sector secure security see seek seeker seem select self sell send senior sense sentence separate
    series serious serve service session set settle settled settlement seven several sex shape share sharp she sheet
    shelf ship shirt shock shoe shoot shop short shot shoulder show shut sick side sight sign signal silent silver
    similar simple simply since sing single sister sit site situation six size skill skin sky sleep slice slow small
    smart smile smoke smooth soap social society soft soil solar soldier solid solution solve someone something
    sometimes son song sons soon sort sound soup source south space speak special specific speech speed spend spirit
    split sport spot spread spring square stable staff stage stand standard star start statement station status stay
    steal steam steel step stick still stock stomach stone stop store storm story straight strange strategy stream
    street strength strike string strong structure struggle student study stuff style subject succeed success such
    sudden suffer sugar suggest suit summer sun supply sure surface surprise surround survive swap sweet swim switch
    system table take talk tall target task taste teach teacher team tear technology teen teenager tell temperature
    ten tend tension term terms test thank theory thick thin thing third thought thousand threat three throw thus
    ticket tie tight till tired title today toddler together tomorrow tone tonight tool tooth top topic torture
    total touch tour toward town track trade tradition traditional traffic train transfer transition transport
    travel treat treatment tree trip trouble truck true trust truth try turn twice two type typical uncle understand
    understood union unit university unless until upon upper upset urban useful user usual usually value variety
    various vegetable vehicle version victim view village violence visa visit visitor voice vow wait walk wall want
    war warm warn wash waste watch water wave way weak weapon wear weather web wedding week weekend weight welcome
    well west whatever wheel whether white whole wide wife wild win wind window wine winner winter wish within
    without woman women wonder wood word work worker world worry worth write writer wrong yard year yellow yesterday
    yet young youth zero zone
"""
