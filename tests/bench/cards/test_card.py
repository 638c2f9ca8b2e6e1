"""The cards that come with the harness, and what a card that is wrong is told."""

import argparse
import re

import pytest

from bench.cards.card import Card, Command, cards, read_card
from bench.cards.faults import used_flags
from bench.methods import METHODS
from bench.paper.tables import TABLES
from tsd.errors import UserError

EXTERNAL = {name: card for name, card in cards().items() if card.run == "external"}
external = pytest.mark.parametrize("name", EXTERNAL)


def command_of(card: Card) -> Command:
    assert card.command is not None
    return card.command


@pytest.mark.parametrize("table", ["table1", "table2", "table7"])
def test_every_row_of_the_paper_has_a_card_or_a_method(table):
    rows = TABLES[table].profiles["paper"].rows
    assert [row.method for row in rows if row.method not in {*cards(), *METHODS}] == []


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_a_row_and_its_card_agree_on_the_steps(table):
    for row in TABLES[table].profiles["paper"].rows:
        if row.method in cards():
            assert cards()[row.method].steps == row.steps, row.method


@external
def test_the_command_uses_only_flags_with_file_and_line_and_all_of_those(name):
    command = command_of(EXTERNAL[name])
    assert set(used_flags(command)) == set(command.flags)
    assert all(re.fullmatch(r"[^:]+\.py:\d+", place) for place in command.flags.values())


@external
def test_argparse_takes_the_command_whole(name):
    command = command_of(EXTERNAL[name])
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in command.flags:
        parser.add_argument(flag, nargs="?")
    _, rest = parser.parse_known_args(list(command.arguments[1:]))
    assert rest == []


@external
def test_the_command_has_no_shell_syntax(name):
    command = command_of(EXTERNAL[name])
    assert command.arguments[0].endswith(".py")
    assert not [argument for argument in command.arguments if re.search(r"[|&;<>$`\\\n*]", argument)]


@external
def test_what_the_command_names_in_the_store_is_a_weight_of_the_card(name):
    card = EXTERNAL[name]
    files = [weight.file for weight in card.weights]
    for argument in command_of(card).arguments:
        if argument.startswith("{weights}/"):
            inside = argument.removeprefix("{weights}/") + "/"
            assert any(f"{file.rstrip('/')}/" in (inside, inside[: len(file)]) for file in files), argument


@external
def test_every_weight_is_used(name):
    card = EXTERNAL[name]
    command = command_of(card)
    named = " ".join([*command.arguments, *command.links.values()])
    assert [weight.file for weight in card.weights if weight.file.rstrip("/") not in named] == []


@external
def test_every_weight_says_where_it_comes_from(name):
    for weight in EXTERNAL[name].weights:
        assert weight.urls or weight.hub or weight.manual, weight.file
        if weight.is_folder:
            assert weight.contains, weight.file
            if weight.hub:
                assert not [file for file in weight.contains if "*" in file], "the hub is asked for names, not patterns"
                assert set(weight.hashes) <= set(weight.contains)
        for digest in (weight.sha256, *weight.hashes.values()):
            assert digest is None or re.fullmatch(r"[0-9a-f]{64}", digest)


@external
def test_pins_are_exact_and_name_no_address(name):
    environment = EXTERNAL[name].environment
    assert environment is not None
    assert [pin for pin in environment.requirements if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", pin)] == []
    names = [re.split("==", pin)[0].lower().replace("_", "-") for pin in environment.requirements]
    assert len(names) == len(set(names))
    assert environment.before, "without a day, what the pins leave open drifts"


@external
def test_nothing_is_asked_of_the_hub_at_run_time(name):
    card = EXTERNAL[name]
    assert card.environment is not None
    if any(pin.startswith(("transformers", "diffusers")) for pin in card.environment.requirements):
        assert command_of(card).variables.get("HF_HUB_OFFLINE") == "1"


@external
def test_a_patch_says_why_and_changes_something(name):
    for patch in EXTERNAL[name].patches:
        assert patch.reason
        assert patch.find != patch.replace


@pytest.mark.parametrize("name", ["pisa-sr", "adcsr"])
def test_a_new_competitor_is_under_fifty_lines_of_card(name):
    from bench.cards.card import CARDS

    assert len((CARDS / f"{name}.toml").read_text().splitlines()) < 50


CARD = """
display = "Own"
steps = 1
kind = "diffusion"
run = "external"
summary = "a network"
licence = "MIT"
citation = "nobody"
repository = "https://example.org/owner/Own"
commit = "0123456789abcdef0123456789abcdef01234567"
verified = "never"
seeding = "none"
assets = ["ram"]

[environment]
python = "3.10"
requirements = ["numpy==1.26.4"]

[command]
arguments = ["test.py", "-i", "{lr}", "-o", "{sr}"]
outputs = "{name}.png"
flags = { -i = "test.py:1", -o = "test.py:2" }
"""


def written(tmp_path, text: str):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


def test_the_card_below_is_right_before_it_is_spoilt(tmp_path):
    card = read_card(written(tmp_path, CARD))
    assert card.name == "own"
    assert [weight.file for weight in card.weights] == ["ram_swin_large_14m.pth"]


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        ('licence = "MIT"', 'license = "MIT"', "unknown key 'license' (did you mean 'licence'?)"),
        ('outputs = "{name}.png"', 'output = "{name}.png"', "command: unknown key 'output' (did you mean 'outputs'?)"),
        ('display = "Own"', 'name = "own"', "`name` is the file's name"),
        ("steps = 1", 'steps = "1"', "steps: expected int, found '1'"),
        ("steps = 1", "steps = true", "steps: expected int, found True"),
        ('assets = ["ram"]', 'assets = "ram"', "assets: expected a list, found 'ram'"),
        ('summary = "a network"\n', "", "summary missing"),
        ('outputs = "{name}.png"', "", "command: outputs missing"),
        ('"{lr}"', '"{input}"', "unknown placeholder {input}"),
        ('"{lr}"', '"in"', "the command never names {lr}"),
        ('"{name}.png"', '"sr.png"', "no {name}: images are matched by name"),
        ('["ram"]', '["rem"]', "no shared asset 'rem' (did you mean 'ram'?)"),
        ('"{sr}"]', '"{sr}", "--scale", "4"]', "[command.flags] does not say where the repository declares --scale"),
        ('"test.py:2"', '"test.py"', "-o = 'test.py'; expected FILE:LINE"),
        (
            'outputs = "{name}.png"',
            'outputs = "{name}.png"\nlinks = { w = "x.pth" }',
            "'x.pth' is no weight of the card",
        ),
        ('commit = "01', 'commit = "v1', "expected the 40 hex digits of a commit"),
        ('seeding = "none"', 'seeding = "image"', "needs a patch that calls bench_seed"),
        ('seeding = "none"', 'seeding = "maybe"', "expected one of image, none, deterministic"),
        ('python = "3.10"', 'python = "3.10"\nbefore = "May 2024"', "before = 'May 2024'; expected a day"),
        ('python = "3.10"', 'python = "3.10"\nbefore = "2024-13-45"', "before = '2024-13-45'; expected a day"),
        ('python = "3.10"', 'python = "three"', "python = 'three'; expected a version, like '3.10'"),
        ('["numpy==1.26.4"]', '["-r other.txt"]', "'-r other.txt' is an option or a file of one machine"),
        ('["numpy==1.26.4"]', '["own @ file:///home/me/own"]', "is an option or a file of one machine"),
        ('"{lr}"', '"{lr}", "/home/me/x.yaml"', "'/home/me/x.yaml' is a path of one machine; use {weights}"),
        ('"{name}.png"', '"../{name}.png"', "outputs = '../{name}.png' does not lie under {sr}"),
        ('"{name}.png"', '"/{name}.png"', "outputs = '/{name}.png' does not lie under {sr}"),
        ('"{name}.png"', '"{name}.png"\nlinks = { "../w" = "ram_swin_large_14m.pth" }', "'../w' does not lie in the"),
        ('"{name}.png"', '"{name}.png"\nlinks = { "/w" = "ram_swin_large_14m.pth" }', "'/w' does not lie in the"),
        ('"{name}.png"', '"{name}.png"\nlinks = { ".git/w" = "ram_swin_large_14m.pth" }', "'.git/w' does not lie in"),
        ('"{name}.png"', '"{name}.png"\nseconds_per_image = 0', "seconds_per_image = 0; expected 1 or more"),
        ('assets = ["ram"]', 'weights = [{ file = "../w.pth" }]', "'../w.pth' does not lie in the store"),
        ('assets = ["ram"]', 'weights = [{ file = "./w.pth" }]', "the weight file './w.pth' does not lie in the store"),
        ('assets = ["ram"]', 'weights = [{ file = "" }]', "the weight file '' does not lie in the store"),
        ('assets = ["ram"]', 'weights = [{ file = "hashes.json" }]', "'hashes.json' does not lie in the store"),
        ('assets = ["ram"]', 'weights = [{ file = "w", alternatives = { "../v" = "" } }]', "'../v' does not lie in"),
        (
            'assets = ["ram"]',
            'network = { file = "w", key = "*", architecture = "A", parameters = 1, padding = "femasr" }',
            "with key = '*' spandrel alone decides",
        ),
        ('assets = ["ram"]', 'weights = [{ file = "w/", contains = ["../a"] }]', "'../a' does not lie in the folder"),
        ('assets = ["ram"]', 'weights = [{ file = "w/", hub = ["a/b"], contains = ["a*"] }]', "names, not patterns"),
        ("steps = 1", "steps = ", "is not TOML"),
    ],
)
def test_a_spoilt_card_gets_the_one_clear_error(tmp_path, find, replace, message):
    assert CARD.count(find) == 1
    path = written(tmp_path, CARD.replace(find, replace))
    with pytest.raises(UserError) as caught:
        read_card(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_faults_come_at_once(tmp_path):
    spoilt = CARD
    for find, replace in (
        ('licence = "MIT"', 'license = "MIT"'),
        ("steps = 1", 'steps = "1"'),
        ('commit = "01', 'commit = "v1'),
        ('["ram"]', '["rem"]'),
        ('outputs = "{name}.png"\n', ""),
        ('"test.py:2"', '"test.py"'),
        ('["numpy==1.26.4"]', '["numpy==1.26.4", 5, "-r x"]'),
        ('citation = "nobody"', 'citation = "TODO: who"'),
    ):
        assert spoilt.count(find) == 1
        spoilt = spoilt.replace(find, replace)
    with pytest.raises(UserError) as caught:
        read_card(written(tmp_path, spoilt))
    first, *found = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'own.toml'}: 10 faults"
    starts = ("unknown key 'license'", "licence missing", "steps: expected int", "environment, requirements 2:",
              "command: outputs missing", "no shared asset 'rem'", "still to be written: citation", "commit = 'v1",
              "requirements: '-r x'", "flags: -o = 'test.py'")  # fmt: skip
    assert [line.strip()[: len(start)] for line, start in zip(found, starts, strict=True)] == list(starts)


@pytest.mark.parametrize("file", ["../../x.py", "/x.py", ".git/config", "a//x.py"])
def test_a_patch_stays_in_the_checkout(tmp_path, file):
    patch = f'[[patches]]\nfile = "{file}"\nfind = "a"\nreplace = "b"\nreason = "c"\n'
    with pytest.raises(UserError, match=r"patches: '.*' does not lie in the checkout"):
        read_card(written(tmp_path, CARD + patch))


def test_a_variant_says_only_what_differs(tmp_path):
    patch = '[[patches]]\nfile = "test.py"\nfind = "{}"\nreplace = "{}"\nreason = "r"\n'
    published = '[[published]]\ntestset = "realsr"\nsource = "results"\n'
    whole = read_card(written(tmp_path, CARD + patch.format("a", "b") + published))
    variant = tmp_path / "own-4.toml"
    variant.write_text('like = "own"\nsteps = 4\n' + patch.format("c", "d"))
    card = read_card(variant)
    assert (card.name, card.steps, card.command, card.weights) == ("own-4", 4, whole.command, whole.weights)
    assert [item.find for item in card.patches] == ["a", "c"]
    assert card.published == ()
    variant.write_text('like = "own"\nstep = 4\n')
    with pytest.raises(UserError, match=r"own-4\.toml: unknown key 'step' \(did you mean 'steps'\?\)"):
        read_card(variant)
    for wrong in ('"other"', "4", '["own"]', '"../own"'):
        variant.write_text(f"like = {wrong}\nsteps = 4\n")
        with pytest.raises(UserError, match=r"like = .*; expected the name of a card beside this one"):
            read_card(variant)
    variant.write_text('like = "own"\n')
    (tmp_path / "own-5.toml").write_text('like = "own-4"\n')
    with pytest.raises(UserError, match="which is itself like 'own'; expected a whole card"):
        read_card(tmp_path / "own-5.toml")


def test_no_card_at_all(tmp_path):
    with pytest.raises(UserError, match="no card at"):
        read_card(tmp_path / "own.toml")
    with pytest.raises(UserError, match="cannot be read as a card: Is a directory"):
        read_card(tmp_path)
