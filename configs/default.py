"""Every setting once, with the paper's values for CIFAR-10.

The other configs start from it and override. "Paper" is arXiv:2509.20793,
"code" its public implementation, GitHub mayaobuduyao/FERD, used where the
paper is silent; docs/method.md lists where they differ.
"""

from ml_collections import config_dict


def _network(arch: str) -> config_dict.ConfigDict:
  """Returns a network's settings.

  None, or '' on a command line, is the architecture's own default.
  """
  network = config_dict.ConfigDict()
  network.arch = arch
  network.width = config_dict.placeholder(int)  # channels of the first conv
  network.mean = config_dict.placeholder(tuple)  # normalisation in the model
  network.std = config_dict.placeholder(tuple)
  network.activation = config_dict.placeholder(str)  # relu or silu
  network.padding = config_dict.placeholder(str)  # at stride 2: both or same
  network.shortcut = config_dict.placeholder(str)  # cifar_resnet
  network.shortcut_input = config_dict.placeholder(str)  # preact_resnet
  network.final_bn = config_dict.placeholder(bool)  # preact_resnet
  return network


def get_config() -> config_dict.ConfigDict:
  """Returns the default config."""
  config = config_dict.ConfigDict()
  config.name = 'default'  # of the work directory and in tables
  config.seed = 0
  config.num_epochs = 220  # paper
  config.warmup_epochs = 20  # paper: the student is not trained in these
  config.eps = 8 / 255  # L-infinity radius of every attack, paper
  # Of the attacks while training; None: eps / 4, the paper's 2/255.
  config.step_size = config_dict.placeholder(float)
  config.parallel = 'auto'  # auto, jit, pmap or shard_map
  config.max_minutes = 0.  # start no epoch that would end later; 0: no limit

  config.data = data = config_dict.ConfigDict()  # for evaluation only
  data.name = 'cifar10'  # see ferd_jax.data.NAMES, or a path to an .npz
  data.dir = ''  # of TFDS; '' is TFDS's own default
  data.split = 'test'  # TFDS syntax, e.g. test[:1000]
  data.noise_examples = 0  # > 0: that many images of noise instead (smoke)

  config.teacher = _network('wrn_34_10')
  # 'auto' as arch: recognised from the file; what that does not say is asked.
  # A RobustBench id (python -m ferd_jax.teachers list) sets arch and all that
  # belongs to it, and fetches the file if no path is given.
  config.teacher.robustbench = config_dict.placeholder(str)
  config.teacher.path = ''  # its file; 'random': no file (smoke)
  config.teacher.select = config_dict.placeholder(str)  # dict in the file
  config.student = _network('resnet18')

  config.augment = augment = config_dict.ConfigDict()  # of views and batches
  augment.pad = 4  # largest shift, pixels
  augment.flip = True

  config.synthesis = synthesis = config_dict.ConfigDict()
  synthesis.steps = 200  # N_G, generator steps per epoch
  synthesis.batch_size = 256  # images an epoch
  synthesis.nz = 100  # size of a latent
  synthesis.width = 128  # channels of the generator
  synthesis.generator_lr = 2e-3
  synthesis.latent_lr = 0.015
  synthesis.w_bn = 5.  # BatchNorm statistics
  synthesis.w_oh = 1.  # cross-entropy with the sampled label
  synthesis.w_adv = 1.  # disagreement of teacher and student
  synthesis.w_uni = 5.  # uniform prediction from non-robust features
  synthesis.keep = 'best'  # which step's images: best or last
  synthesis.warmup_adv = True  # L_adv also while the student is untrained

  config.features = features = config_dict.ConfigDict()  # non-robust mask
  features.tap = ''  # stage of the teacher; '' is the architecture's default
  features.steps = 50  # Adam steps of the bottleneck
  features.learning_rate = 0.1
  features.beta = 0.3
  features.kl = 'mean'  # over channels, code; sum, paper
  features.mask = 'global'  # threshold over the batch; or per_sample

  config.class_weights = class_weights = config_dict.ConfigDict()
  class_weights.rule = 'softmax'  # paper; minmax, code; uniform: none
  class_weights.tau = 1.
  class_weights.range = (0.05, 0.2)  # of minmax, code
  class_weights.absent = 'carry'  # or mean, or zero (code)
  class_weights.batch = 'last_view'  # whose margins; or best
  class_weights.attack_steps = 20  # PGD-20 on the teacher

  config.pool = pool = config_dict.ConfigDict()
  pool.dtype = 'float32'  # or uint8, a quarter of the memory

  config.distill = distill = config_dict.ConfigDict()
  distill.steps = 400  # N_S, student steps per epoch
  distill.batch_size = 256
  distill.learning_rate = 0.1  # cosine over num_epochs
  distill.momentum = 0.9
  distill.weight_decay = 5e-4
  distill.attack_steps = 10
  distill.utae_gamma = 0.3  # paper: 0.1-0.5; 0 is RSLAD's attack (code)
  distill.utae_source = 'student'  # attacked network; or teacher
  distill.ikl_prior = 'class_mean'  # or sample, or one_hot (code)
  distill.ikl_norm = 'weights'  # GKL, code; batch: IKL
  distill.ikl_power = 1.  # exponent of the prior
  distill.w_clean = 5 / 6  # paper
  distill.w_adv = 1 / 6  # paper

  config.eval = evaluation = config_dict.ConfigDict()
  # At the end: of ferd_jax.robustness.ATTACKS.
  evaluation.attacks = ('clean', 'fgsm', 'pgd20', 'cw20', 'autoattack')
  evaluation.autoattack_examples = 0  # the first images only; 0: all
  # Then so many images under attacks on every wrong class: which targets are
  # reached from which classes; 0: none.
  evaluation.target_examples = 10_000
  evaluation.batch_size = 512
  evaluation.every = 10  # epochs between points of the learning curve; 0: none
  evaluation.curve_attacks = ('clean', 'pgd20')
  evaluation.curve_examples = 1000  # first images of data.split; 0: all
  # The epoch to report: last, or the best by synthetic_pgd (needs no data) or
  # by a point of the learning curve, test_<attack> or test_<attack>_worst.
  evaluation.select = 'last'
  evaluation.nsd_ddof = 0  # 1: the sample's standard deviation over classes

  config.log = log = config_dict.ConfigDict()
  log.samples_every = 10  # epochs between sample grids; 0: none
  return config
