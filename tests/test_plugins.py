"""Plugins are found without an import, loaded when their thing is looked up, and an error names the one that fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.outside import REGISTRIES, Outside, outside  # noqa: F401
from vlm_detect import plugins
from vlm_detect.errors import UserError
from vlm_detect.images.edits import EDITS, edit

EDIT = """
from vlm_detect.images.edits import edit


@edit("{name}", words="{name}", done=("has {name}",))
def {name}(scene):
    return scene.patch
"""
FAILS = "raise RuntimeError('no compiler\\nfound')"


def install(outside: Outside, name: str, source: str = EDIT, **points: str) -> None:  # noqa: F811
    edit_name = next(iter(points)) if points else name
    named = {f"edit.{point}": module for point, module in points.items()} or {f"edit.{name}": f"{name}_plugin"}
    outside.install(name, {f"{name}_plugin.py": source.replace("{name}", edit_name)}, named)


def test_a_registry_for_each_kind() -> None:
    assert sorted(registry.kind for registry in REGISTRIES) == sorted(plugins.KINDS)
    assert all(registry.own == tuple(registry) for registry in REGISTRIES), "a plugin is installed here"


def test_names_are_listed_without_an_import(outside: Outside) -> None:  # noqa: F811
    own = EDITS.own
    install(outside, "grain", FAILS)
    assert tuple(EDITS) == (*own, "grain")
    assert "grain" in EDITS
    assert EDITS.own == own
    assert len(EDITS) == len(own) + 1
    assert EDITS["blur"].name == "blur"
    assert "grain_plugin" not in sys.modules


def test_a_plugin_is_loaded_when_it_is_looked_up(outside: Outside) -> None:  # noqa: F811
    install(outside, "grain")
    assert "grain_plugin" not in sys.modules
    assert EDITS["grain"].spoken == "grain"
    assert "grain_plugin" in sys.modules
    assert "grain" not in EDITS.own
    assert "grain" in [one.name for one in EDITS.values()]
    assert plugins.plugin_versions() == {"grain": "1.0"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            FAILS,
            r"plugin grain \(edit.grain = grain_plugin\) cannot be loaded for the edit 'grain' \(RuntimeError: no comp",
        ),
        ("import no_such_module", r"plugin grain .* cannot be loaded for the edit 'grain' \(ModuleNotFoundError"),
        ("def broken(:", r"plugin grain .* cannot be loaded .*SyntaxError"),
        ("raise SystemExit(3)", r"plugin grain .* cannot be loaded .*SystemExit"),
        ("", r"plugin grain .* registers no edit called 'grain'"),
        (EDIT.replace("{name}", "other"), r"plugin grain .* registers no edit called 'grain'"),
        (
            EDIT.replace("{name}", "blur"),
            r"plugin grain .*edit 'blur' of grain_plugin.blur: vlm_detect\S+ has that name",
        ),
    ],
)
def test_an_error_names_the_plugin_that_fails(outside: Outside, source: str, said: str) -> None:  # noqa: F811
    install(outside, "grain", source)
    with pytest.raises(UserError, match=said) as caught:
        EDITS["grain"]
    assert "\n" not in str(caught.value)
    assert EDITS["blur"].name == "blur"  # the others are as they were


def test_two_plugins_of_one_name(outside: Outside) -> None:  # noqa: F811
    install(outside, "grain")
    install(outside, "film", grain="film_plugin")
    with pytest.raises(UserError, match=r"edit 'grain': plugin \w+ .* and plugin \w+ .* both have it"):
        EDITS["grain"]


def test_an_error_about_an_unknown_name_gives_the_nearest(outside: Outside) -> None:  # noqa: F811
    install(outside, "grain", FAILS)
    with pytest.raises(UserError, match="no edit is called 'grian'; did you mean grain\\? Known are blur, "):
        EDITS["grian"]
    with pytest.raises(UserError, match="--edit_operations zz: no such edit; known are blur, "):
        EDITS.check("zz", flag="--edit_operations")


def test_the_same_function_defined_again_replaces_itself(outside: Outside) -> None:  # noqa: F811
    """As a notebook does when a cell is run twice."""
    for strength in (1, 2):

        @edit("again", words="again", done=(f"again {strength}",))
        def again(scene):
            return scene.patch

    assert EDITS["again"].done == ("again 2",)
    with pytest.raises(UserError, match="has that name; take another"):

        @edit("again", words="again", done=())
        def another(scene):
            return scene.patch


def test_entry_points_that_nothing_would_look_up_are_found(outside: Outside) -> None:  # noqa: F811
    outside.install("odd", {}, {"edits.grain": "odd", "grain": "odd", "edit.fine": "odd"})
    assert [line.partition(":")[0] for line in plugins.mistaken()] == [
        "plugin odd (edits.grain = odd)",
        "plugin odd (grain = odd)",
    ]


def test_looking_up_a_builtin_name_imports_no_plugin(outside: Outside) -> None:  # noqa: F811
    outside.install("heavy", {"heavy.py": FAILS}, {"question.heavy": "heavy", "edit.heavy": "heavy"})
    code = (
        f"import sys; sys.path.append({str(outside.folder)!r})\n"
        "from vlm_detect.questions.kind import KINDS\n"
        "assert KINDS['yes_no'].trains and 'heavy' in KINDS\n"
        "assert 'heavy' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reason_that_does_not_parse_as_its_edit_is_refused() -> None:
    with pytest.raises(UserError, match="edit 'odd': its words do not match its wording 'was changed'"):
        edit("odd", words="odd", done=("was changed",))
