from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

import dtrain
from dtrain.vision.data import DATASETS, open_dataset

CONF = Path(dtrain.__file__).parent / "conf" / "data"
OF_THE_LOADER = {"augment", "num_workers"}


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(
        ValueError, match="data set mnist does not exist: choose one of cifar10, digits, image_folder, "
    ):
        open_dataset("mnist", split="train", image_size=32)


def test_an_unknown_split_option_or_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="split val does not exist"):
        open_dataset("digits", split="val", image_size=32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="digits has no option colour: it has none"):
        open_dataset("digits", split="train", image_size=32, colour=True)
    with pytest.raises(ValueError, match="no option num_images"):
        open_dataset("synthetic", split="train", image_size=32, num_images=3)
    with pytest.raises(ValueError, match="image_size is 0"):
        open_dataset("digits", split="train", image_size=0)


@pytest.mark.parametrize("name", ["cifar10", "image_folder"])
def test_a_data_set_on_disk_asks_for_its_root(name: str) -> None:
    with pytest.raises(ValueError, match=rf"data set {name} needs a folder: .*data\.root=FOLDER"):
        open_dataset(name, split="train", image_size=32)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_root_that_would_be_ignored_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave root unset"):
        open_dataset(name, split="train", image_size=32, root=tmp_path)


def test_every_data_set_has_a_config_of_its_name_and_no_other() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_config_holds_every_option_and_opens_the_data_set(name: str, tmp_path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(config, dict)
    assert config["name"] == name
    assert config.keys() >= OF_THE_LOADER
    options = {str(key): value for key, value in config.items() if key not in {"root", *OF_THE_LOADER}}
    if name == "cifar10":
        with pytest.raises(FileNotFoundError, match="download=true"):
            open_dataset(**options, root=tmp_path, split="train")
        return
    if name == "image_folder":
        (tmp_path / "a").mkdir()
        Image.new("RGB", (300, 200)).save(tmp_path / "a" / "1.png")
        options["root"] = tmp_path
    dataset = open_dataset(**options, split="train")
    assert dataset.name == name
    assert len(dataset.classes) == dataset.num_classes
    images, labels = dataset.read([0])
    assert images.shape == (1, 3, dataset.image_size, dataset.image_size)
    assert labels.shape == (1,)
