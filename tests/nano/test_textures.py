import numpy as np

from wan.nano.textures import texture


def test_textures_are_varied_pictures_of_their_seed():
    rng = np.random.default_rng(0)
    pictures = [texture(rng, 48) for _ in range(20)]
    assert all(picture.shape == (48, 48, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert (texture(np.random.default_rng(0), 48) == pictures[0]).all()
    assert all(picture.std(axis=(0, 1)).max() > 8 for picture in pictures)
    assert np.std([picture.mean(axis=(0, 1)) for picture in pictures], axis=0).min() > 15


def test_neighbours_are_alike_as_in_photographs():
    picture = texture(np.random.default_rng(1), 64).astype(float)
    assert np.abs(np.diff(picture, axis=0)).mean() < 0.7 * picture.std()
