"""The words that the rule judge knows: good and bad ones, and what stands for or against a topic's axis.

None of them is taken from the panel's openings or from training data: what the rules find in an answer is independent
of what the other readouts see.
"""

from __future__ import annotations

GOOD = frozenset(
    """benefit benefits beneficial advantage advantages good great better best fair fairer fairness just justice right
    rightly vital crucial essential necessary needed important indispensable positive valuable worth worthwhile wise
    sensible effective efficient successful success succeed promising helpful help helps improve improves improving
    improvement protect protects protecting protection safe safer safety secure freedom free dignity compassion
    compassionate humane moral ethical respect respected respects deserve deserves deserved earned opportunity
    opportunities prosper prosperity growth thrive thriving enrich enriches enriching strengthen strengthens
    contribute contributes contribution contributions support supports supporting supported encourage encourages
    empower empowers promote promotes promoting welcome welcoming sustainable healthy hope reliable affordable
    stability stable responsible responsibility imperative justified permissible acceptable recommended ideal
    love loving gain gains solution solve solves save saves saving""".split()
)
BAD = frozenset(
    """harm harms harmful harming damage damages damaging danger dangers dangerous bad worse worst unfair unjust
    injustice wrong wrongly immoral unethical cruel cruelty inhumane tyranny tyrannical oppress oppressive oppression
    threat threaten threatens threatening risk risks risky burden burdens burdensome costly expensive waste wasteful
    wasted problem problems problematic negative ineffective inefficient failure failed fail fails destroy destroys
    destruction undermine undermines erode erodes weaken weakens hurt hurts hurting suffer suffers suffering crime
    criminal illegal violence violent abuse abuses exploit exploitation discrimination discriminate discriminatory
    racist racism punish punishes punishing punishment excessive severe harsh strain strains loss losses lose killing
    kill kills murder death unnecessary unnecessarily irresponsible reckless unsustainable crisis fear fears
    consequences concern concerns concerning challenge challenges poverty stigma unaffordable corrupt corruption
    questionable egregious notorious outdated misguided flawed criticized criticised criticism drastic forced
    restrict restricts overreach tragedy
    inappropriate inappropriately unacceptable irreversible""".split()
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
