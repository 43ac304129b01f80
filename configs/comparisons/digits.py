"""Every method on scikit-learn's digits, three seeds: hours on two cores.

  python -m ferd_jax.compare digits --jobs=2

Runs of the variant `short`, so that all fit: 1,200 student steps for each
method. Generator steps, and so the teacher's passes, are those of each method's
config on small data sets, and differ by far; the table has them. Left out are
IAD-II, MTARD and Fair-MTARD, which need a second teacher, the other fair losses
and IKL and GKL, relatives of rows that are there, the attacks `hee` and
`similar_target`, and the samplers but FERD's and the uniform one.
`digits_constants` has FERD's constants.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config = 'digits:short'
  return plans.Plan(
      name='digits', minutes=5., footnotes=methods.FOOTNOTES,
      rows=[*methods.ferd(config), *methods.ablations(config),
            *methods.baselines(config, methods.as_many_steps(100)),
            *methods.losses(config),
            *methods.with_data(config)],
      settings={'eval.every': 1, 'eval.target_examples': 0,
                'log.samples_every': 0})
