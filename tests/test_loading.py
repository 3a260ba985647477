"""Checkpoints: what is read, what is refused, and how they are written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import FAMILIES, TESTED, tiny_batch, tiny_config, tiny_model
from tsprune import registry
from tsprune.errors import TspruneError
from tsprune.models import _loading, fingerprint, load, save

every_family = pytest.mark.parametrize("family", FAMILIES)


def checkpoint(folder: Path, family: str = "chronos2", **changes: Any) -> Path:
    return save(tiny_model(family, **changes), folder / "model")


@every_family
def test_a_saved_model_reloads_bit_equal(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    again = load(save(model, tmp_path / "model"))
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.notes == ()
    assert not again.training
    assert fingerprint(again) == fingerprint(model)
    assert torch.equal(again.forecast(tiny_batch(), 40), model.forecast(tiny_batch(), 40))


@every_family
def test_weights_of_another_type_are_converted_and_it_is_said(family: str, tmp_path: Path) -> None:
    folder = save(tiny_model(family).to(torch.float16), tmp_path / "model")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    model = load(folder)
    assert model.dtype == torch.float32
    assert model.notes == ("weights in model.safetensors are float16, converted to float32",)
    assert load(folder, dtype="float16").notes == ()


@every_family
def test_loading_leaves_the_random_state_alone(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family)
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


@every_family
def test_sharded_weights_equal_a_single_file(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family)
    expected = fingerprint(load(folder))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert fingerprint(load(folder)) == expected
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(TspruneError, match="model-00002-of-00002"):
        load(folder)


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(TspruneError, match="outside"):
        load(folder)


def test_public_bolt_files_share_one_table_and_may_repeat_the_embedding(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "chronos_bolt")
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if "relative_attention_bias" in n and ".block.0." not in n]:
        del tensors[name]
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    state = load(folder).state_dict()
    tables = [n for n in state if n.startswith("encoder") and n.endswith("relative_attention_bias.weight")]
    assert len(tables) == 2
    assert torch.equal(state[tables[0]], state[tables[1]])
    assert state[tables[0]].data_ptr() != state[tables[1]].data_ptr()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_bolt_file_may_store_the_embedding_under_a_tied_name_alone(stack: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "chronos_bolt")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("shared.weight")
    save_file(tensors | {f"{stack}.embed_tokens.weight": embedding}, folder / "model.safetensors")
    assert torch.equal(load(folder).state_dict()["shared.weight"], embedding)


@every_family
def test_a_stride_of_null_is_the_patch_size(family: str) -> None:
    assert tiny_model(family, input_patch_stride=None).stride == 8


@every_family
def test_missing_extra_and_misshaped_tensors_are_named(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["surprise"] = tensors.pop("encoder.final_layer_norm.weight")
    tensors["shared.weight"] = torch.zeros(2, 3)
    save_file(tensors, file)
    with pytest.raises(TspruneError) as caught:
        load(folder)
    message = str(caught.value)
    assert "model.safetensors" in message
    assert "1 missing: encoder.final_layer_norm.weight" in message
    assert "1 unknown: surprise" in message
    assert "shared.weight [2, 3] instead of [2, 24]" in message


def test_at_most_five_missing_tensors_are_listed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    save_file({"shared.weight": torch.zeros(2, 24)}, folder / "model.safetensors")
    with pytest.raises(TspruneError) as caught:
        load(folder)
    assert str(caught.value).count("weight") + str(caught.value).count("bias") <= 6


@pytest.mark.parametrize("keep", [0, 5, 400, -7])
def test_a_truncated_weights_file_is_named(tmp_path: Path, keep: int) -> None:
    folder = checkpoint(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TspruneError, match=r"model\.safetensors.*damaged"):
        load(folder)


def test_a_family_named_wrongly_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "chronos_bolt")
    with pytest.raises(TspruneError, match="chronos_bolt model, not chronos2"):
        load(folder, family="chronos2")
    with pytest.raises(TspruneError, match=r"chronos9.*chronos2, chronos_bolt"):
        load(folder, family="chronos9")
    assert load(folder, family="chronos-bolt").family == "chronos_bolt"


def test_a_config_nobody_recognises_lists_the_families(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(TspruneError, match=r"LlamaForCausalLM.*chronos_bolt"):
        load(folder)


@pytest.mark.parametrize(("content", "named"), [("{", "not valid JSON"), ("[1]", "expected an object")])
def test_a_damaged_config_is_named(tmp_path: Path, content: str, named: str) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(TspruneError, match=rf"config\.json.*{named}"):
        load(folder)


def test_sources_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match=r"no config\.json"):
        load(tmp_path)
    file = tmp_path / "weights.bin"
    file.touch()
    with pytest.raises(TspruneError, match="is a file"):
        load(file)
    with pytest.raises(TspruneError, match=r"not a directory.*mini"):
        load("unheard-of")
    with pytest.raises(TspruneError, match="not a directory"):
        load(tmp_path / "nowhere" / "at" / "all")


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(TspruneError, match=r"pytorch_model\.bin.*convert"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(TspruneError, match=r"no model\.safetensors"):
        load(folder)


def test_types_and_devices_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    with pytest.raises(TspruneError, match=r"int4.*bfloat16"):
        load(folder, dtype="int4")
    with pytest.raises(TspruneError, match="abacus"):
        load(folder, device="abacus")


def test_a_hub_model_offline_names_the_files_and_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    with pytest.raises(TspruneError, match=r"no network.*hf download someone/model config\.json model\.safetensors"):
        load("someone/model")


def test_a_hub_model_in_the_cache_is_loaded_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    asked: list[dict[str, Any]] = []

    def cached(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert load("someone/model@v2").family == "chronos2"
    assert [(a["repository"], a["revision"], a["local_files_only"]) for a in asked] == [("someone/model", "v2", True)]


def test_a_half_filled_cache_is_completed_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((folder / "config.json").read_text())
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, local_files_only, **__: str(half if local_files_only else folder),
    )
    assert load("someone/model").family == "chronos2"


def test_a_directory_with_other_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TspruneError, match=r"notes\.txt"):
        save(tiny_model("chronos2"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    first = tiny_model("chronos2")
    heads = next(iter(first.unit_groups()))
    from tsprune.slimming import slim

    save(slim(first, {heads: []}), tmp_path / "model")
    second = tiny_model("chronos_bolt")
    save(second, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "plan.json").exists()
    assert fingerprint(load(tmp_path / "model")) == fingerprint(second)


def test_a_failed_save_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path)
    before = fingerprint(load(folder))

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(_loading, "write_tensors", full)
    with pytest.raises(OSError, match="disk full"):
        save(tiny_model("chronos2", seed=9), folder)
    assert fingerprint(load(folder)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_at_the_last_step_puts_the_earlier_checkpoint_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path)
    before, rename = fingerprint(load(folder)), os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if source.name.endswith(".part"):
            raise OSError("quota")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(OSError, match="quota"):
        save(tiny_model("chronos2", seed=9), folder)
    assert fingerprint(load(folder)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_fingerprint_tells_types_of_equal_bytes_apart() -> None:
    empty = tiny_model("chronos2")
    for parameter in empty.parameters():
        parameter.data.zero_()
    assert fingerprint(empty.to(torch.float16)) != fingerprint(empty.to(torch.bfloat16))


def test_the_fingerprint_sees_every_bit_and_name(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    before = fingerprint(model)
    assert fingerprint(tiny_model("chronos2")) == before
    with torch.no_grad():
        model.shared.weight[0, 0] += 1e-6
    assert fingerprint(model) != before
    assert fingerprint(tiny_model("chronos2").to(torch.bfloat16)) != before


def test_corpora_named_in_the_config_reach_the_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, pretraining_corpora=["simulated"])
    assert load(folder).pretraining_corpora == ("simulated",)
    assert load(checkpoint(tmp_path)).pretraining_corpora is None


def test_names_are_the_files_and_dashes_count_as_underscores() -> None:
    assert registry.names("tsprune.models") == TESTED
    assert registry.find("tsprune.models", "chronos-bolt").FAMILY.family == "chronos_bolt"
    with pytest.raises(
        TspruneError, match=r"'nope' is not among the models; known: chronos2, chronos_bolt, chronos_t5"
    ):
        registry.find("tsprune.models", "nope")
    with pytest.raises(TspruneError, match="known"):
        registry.find("tsprune.models", "_loading")


def test_listing_names_imports_no_family_and_no_torch() -> None:
    code = (
        "import sys; from tsprune import registry; assert 'chronos_bolt' in registry.names('tsprune.models');"
        "import tsprune.models; print([m for m in ('torch', 'tsprune.models.chronos2') if m in sys.modules])"
    )
    source = str(Path(__file__).resolve().parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_a_model_in_a_folder_with_a_foreign_plan_says_what_does_not_fit(tmp_path: Path) -> None:
    from tsprune.slimming import make_plan

    folder = checkpoint(tmp_path)
    other = tiny_model("chronos2", num_layers=3)
    kept = {name: [] for name, group in other.unit_groups().items() if group.kind == "layer"}
    make_plan(other, kept, base_model="other").write(folder / "plan.json")
    with pytest.raises(TspruneError, match=r"plan for other does not fit.*block\.2/layer"):
        load(folder)


@every_family
def test_recognition_works_by_architecture_or_pipeline_alone(family: str) -> None:
    kind = registry.find("tsprune.models", family).FAMILY
    config = tiny_config(family)
    for left_out in ("architectures", "chronos_pipeline_class"):
        assert kind.recognises({k: v for k, v in config.items() if k != left_out})
    assert not kind.recognises({"architectures": None})


@pytest.mark.parametrize(("entry", "value"), [("d_model", None), ("d_model", "wide"), ("d_model", -4)])
def test_an_impossible_entry_is_named_with_the_whole_path(entry: str, value: object, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {entry: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TspruneError, match=rf"^{folder / 'config.json'}: entry '{entry}' is"):
        load(folder)


@every_family
def test_sizes_that_no_memory_can_have_are_one_line(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family)
    config = json.loads((folder / "config.json").read_text()) | {"d_ff": 10**30}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TspruneError, match=rf"^{folder / 'config.json'}: no {family} model has these sizes"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["encoder.final_layer_norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TspruneError, match=r"model\.safetensors: tensor 'encoder\.final_layer_norm\.weight' .*finite"):
        load(folder)


def test_weights_too_large_for_the_wanted_type_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["shared.weight"][0, 0] = -1e30
    save_file(tensors, folder / "model.safetensors")
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(TspruneError, match="'shared.weight' reaches 1e\\+30, which float16 cannot hold"):
        load(folder, dtype="float16")


@every_family
def test_a_slim_checkpoint_without_its_plan_is_told_so(family: str, tmp_path: Path) -> None:
    from tsprune.slimming import slim

    model = tiny_model(family)
    kept = {n: range(g.units - 1) for n, g in model.unit_groups().items() if g.kind == "ffn_channel"}
    folder = save(slim(model, kept), tmp_path / "model")
    load(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(TspruneError, match=r"wrong shape.*plan\.json is missing beside config\.json"):
        load(folder)


def test_a_config_of_another_size_is_not_blamed_on_a_plan(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_ff": config["d_ff"] // 2}))
    with pytest.raises(TspruneError, match="wrong shape") as caught:
        load(folder)
    assert "plan.json" not in str(caught.value)


def test_a_save_on_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    before, hard = fingerprint(load(folder)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(TspruneError, match=r"cannot be written \(File too large\)"):
            save(tiny_model("chronos2", seed=9), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert fingerprint(load(folder)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
