-- From each set back to the embedding: the chain of sets, and the arguments that made each.
with recursive chain as (
    select name as result, 0 as step, * from lineage
    union all
    select chain.result, chain.step + 1, parent.*
    from chain join lineage as parent on parent.name = chain.made_from and parent.kind <> chain.kind
    where chain.step < 8
)
select result, step, kind, name, arguments, version, fingerprint
from chain order by result, step;
