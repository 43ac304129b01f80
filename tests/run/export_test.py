"""Tests of ferd_jax.export."""

from ferd_jax.run import export


def card(**student):
  return {
      'student': {'arch': 'resnet18', 'num_classes': 2, 'definition': 'a/b, c',
                  'image_shape': [8, 6, 3]} | student,
      'teacher': {'arch': 'wrn_34_10', 'path': '/home/x/net.pt',
                  'robustbench': None,
                  'digest': 'abcdef' * 10},
      'training_data': None, 'method': 'FERD', 'seed': 3, 'norm': 'Linf',
      'eps': 8 / 255, 'epoch': 5,
      'results': {
          'config': 'mine', 'num_epochs': 6, 'num_examples': 4, 'seed': 3,
          'class_counts': [2, 2], 'eps': 8 / 255, 'epoch': 5,
          'dataset': 'cifar10', 'split': 'test', 'class_names': ['a', 'b'],
          'models': {'student': {'clean': dict.fromkeys(
              ('average', 'worst', 'worst10', 'nsd'), 0.5)}}}}


def test_card_says_what_keys_do_not():
  text = export.card_text(card())
  assert text.startswith('# mine: resnet18\n')
  assert '* Network: resnet18, 2 classes.' in text and 'a/b, c.' in text
  assert '[N, 3, 8, 6] images in [0, 1], not normalised.' in text
  assert 'wrn_34_10, net.pt, sha256 of its weights abcdefabcdefabcd.' in text
  assert 'radius 0.031373; seed 3, epoch 5 of 6.' in text
  assert '|  clean |          50.00% |' in text
  text = export.card_text(card(mean=[0.5], std=[0.25], width=8))
  assert 'resnet18 (width 8), 2 classes' in text
  assert 'the mean [0.5] is to be subtracted' in text


def test_card_says_whether_data_were_used():
  assert 'A student of FERD. Trained without data.' in export.card_text(card())
  training_data = {'dataset': 'cifar10', 'split': 'train', 'num_examples': 50}
  text = export.card_text(
      card() | {'training_data': training_data, 'teacher': None})
  assert ('**NOT DATA-FREE: the student was trained on 50 real images, cifar10 '
          'train.**') in text
  assert 'Trained without data' not in text
  assert '* Teacher: none.' in text
