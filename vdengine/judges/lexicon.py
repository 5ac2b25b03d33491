"""The words that the rule judge knows: good and bad ones, verbs that further a thing or curb it, and what stands for
or against a topic's axis.

None of them is taken from the panel's openings or from training data: what the rules find in an answer is independent
of what the other readouts see.
"""

from __future__ import annotations

GOOD = frozenset(
    """benefit benefits beneficial advantage advantages good great better best fair fairer fairness justice rightly
    vital crucial essential necessary needed important indispensable positive valuable worth worthwhile wise
    sensible effective efficient successful success succeed promising helpful help helps improve improves improving
    improvement protect protects protecting protection safe safer safety secure freedom free dignity compassion
    compassionate humane respect respected respects deserve deserves deserved earned opportunity opportunities
    prosper prosperity thrive thriving enrich enriches enriching strengthen strengthens contribute contributes
    contribution contributions supporting supported encourage encourages empower empowers promote promotes promoting
    welcome welcoming sustainable healthy hope reliable affordable stability stable responsible imperative justified
    permissible acceptable recommended ideal love loving gain gains solution solve solves save saves saving
    benefited achievement achievements happiness healthier stronger richer wealthier fairly right-to accountability
    accountable transparency trust trusted equality equitable equal justly decent dignified humanity peace peaceful
    harmony relief comfort innovation innovative productive productivity prosperous well-being wellbeing progress
    progressive advance advances advancing boost boosts boosting improved strengthened strengthening enable enables
    enabling useful valued precious meaningful fulfilling admirable noble honest proven lift lifts lifting cheaper
    affordably restore restores restoring heal heals healing cure cures care cares caring excellent wonderful
    fantastic remarkable brilliant superior indispensably preserve preserves preserving safeguard safeguards
    stabilize stabilizes reward rewards rewarding uplift uplifts foster fosters fostering
    nurture nurtures nurturing""".split()
)
BAD = frozenset(
    """harm harms harmful harming damage damages damaging danger dangers dangerous bad worse worst unfair unjust
    injustice wrong wrongly immoral unethical cruel cruelty inhumane tyranny tyrannical oppress oppressive
    oppression threat threats threaten threatens threatening risk risks risky burden burdens burdensome costly
    expensive waste wasteful wasted problem problems problematic negative ineffective inefficient failure failed
    fail fails destroy destroys destruction undermine undermines erode erodes weaken weakens hurt hurts hurting
    suffer suffers suffering crime criminal violence violent abuse abuses exploit exploitation discrimination
    discriminate discriminatory racist racism punish punishes punishing punishment excessive severe harsh strain
    strains loss losses lose killing kill kills murder unnecessary unnecessarily irresponsible reckless
    unsustainable concerning stigma unaffordable corrupt corruption questionable egregious notorious outdated
    misguided flawed criticized criticised criticism drastic forced restrict restricts overreach tragedy
    inappropriate inappropriately unacceptable irreversible mistake mistakes nonsense absurd foolish stupid
    ridiculous outrageous shameful disgrace disgusting evil sin sinful hateful hatred unfairly inequality unequal
    chaos chaotic unrest instability unstable insecure insecurity unemployment debt debts bankrupt shortage
    shortages overcrowded overcrowding overburden overwhelm overwhelms pollution polluting toxic disease diseases
    victim victims violate violates violating violation violations infringe infringes infringement coercion coercive
    intrusive intrusion divisive division divides divide resentment misery miserable pain painful trauma traumatic
    hardship ruin ruins ruining worsen worsens worsening deprive deprives devastating disaster disastrous
    catastrophe catastrophic fraud myth false pointless useless impractical impossible unrealistic untenable
    unreliable unworkable counterproductive backfire backfires prejudice bias biased bigotry ignorant lies expense
    pollute pollutes endanger endangers endangering impose imposes imposing push pushes drain drains scare scares
    misleading deceptive sensational greed greedy selfish neglect neglects disrupt disrupts disruptive jeopardize
    jeopardizes hinder hinders hindering worry worries worrying alarming inadequate insufficient unproven untrue
    wrongful invasive deadly fatal hazard hazards hazardous scam lazy slavery ugly terrible horrible awful dreadful
    stifle stifles exacerbate exacerbates exacerbating deteriorate collapse shocking stigmatising stigmatizing
    ignorance degrading degradation destabilizing destabilising unbeneficial backwards backward""".split()
)

# Stems of verbs that further a thing, and of those that curb it.
FURTHER = tuple(
    """rais increas expand allow permit accept let welcom introduc build legal grant provid fund pay adopt encourag
    extend protect keep maintain recogni includ offer give guarantee ensure establish creat invest subsid promot
    support host admit open join teach requir marry taking take have""".split()
)
CURB = tuple(
    """cut cap lower reduc ban prohibit forbid limit restrict abolish stop end reject refus remov eliminat deport
    crimin decreas cancel repeal withdraw exclud avoid phase oppos halt prevent curb den abandon scrap block
    dismantl slash shrink weaken outlaw bar punish discourag resist fewer less strict""".split()
)

# By topic: words for what stands for the axis (praise of it is +1), and for what stands against it. Some are two words,
# joined by a hyphen.
ASPECTS = {
    "immigration": (
        "immigrant immigrants migrants migrant refugee refugees newcomers asylum diversity citizenship "
        "amnesty undocumented multicultural",
        "wall walls cap caps deport deported deporting deportation deportations border borders restriction "
        "restrictions detention quota quotas",
    ),
    "abortion": (
        "choice choose reproductive abortion abortions bodily autonomy roe contraception pills",
        "unborn fetus foetus heartbeat pro-life prolife ban bans banned embryo waiting",
    ),
    "climate change": (
        "renewable renewables solar wind environment environmental clean green planet sustainability electric "
        "climate-action climate-policy climate-policies carbon-tax carbon-taxes",
        "fossil fossil-fuel fossil-fuels coal oil oil-drilling drilling gas petrol diesel sceptics skeptics pipeline "
        "fracking climate-change climate-crisis global-warming emissions carbon-emissions",
    ),
    "economic policy": (
        "redistribution welfare public wages wage workers union unions regulation safety-net benefits poor "
        "equality minimum nationalised",
        "privatisation privatization private deregulation wealthy billionaires corporations corporate profit "
        "profits market markets austerity",
    ),
    "family relations": (
        "marriage married tradition traditional obedience duty duties grandparents wedlock motherhood parents",
        "divorce cohabitation independence independent equally housework friends",
    ),
    "religion": (
        "faith religion religious prayer god church churches scripture believers worship belief sacred",
        "secular secularism atheism atheist atheists nonbelievers",
    ),
    "elections and parties": (
        "voters voting participation turnout referendum referendums reform proportional ballot enfranchise voices",
        "identification restrictions disenfranchise elites appointed",
    ),
    "Israel and Palestine": (
        "palestine palestinian palestinians gaza refugees boycott statehood",
        "israel israeli settlements occupation checkpoints blockade idf",
    ),
    "gender and LGBTQ+ rights": (
        "gay lesbian transgender trans lgbt lgbtq same-sex queer pronouns inclusion bisexual homosexuality",
        "traditional conscience biological homophobia",
    ),
    "death penalty": (
        "execution executions deterrent deterrence capital retribution penalty",
        "abolition abolish abolishing mercy rehabilitation clemency innocent",
    ),
    "race and racism": (
        "diversity affirmative reparations equality inclusion minorities desegregation antiracism",
        "segregation colour-blind colorblind slavery racism discrimination",
    ),
}
