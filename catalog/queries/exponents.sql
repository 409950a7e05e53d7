-- How fast each model's error falls: exponents of random samples and of the envelope with 95% intervals.
select
    random.model,
    random.schedule,
    random.form,
    round(random.exponent, 3) as random,
    round(random.exponent_low, 3) as "random low",
    round(random.exponent_high, 3) as "random high",
    round(pareto.exponent, 3) as envelope,
    round(pareto.exponent_low, 3) as "envelope low",
    round(pareto.exponent_high, 3) as "envelope high",
    round(pareto.exponent_vs_random, 3) as "envelope − random",
    round(pareto.exponent_vs_random_interval, 3) as "±",
    random.seeds,
    random.fit
from fits as random
join fits as pareto on pareto.arms = 'pareto'
    and pareto.fit = regexp_replace(random.fit, '-random(-pure-power|-exponential)?$', '-pareto\1')
where random.arms = 'random'
order by random.form, random.fit;
