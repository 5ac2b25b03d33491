"""`use_linear_logprob` and `use_in_trl`: losses and gradients of other people's trainers are those of the plain head.

In fp32 both are two evaluations of one formula in other orders: tolerances are those of helpers.trl_trainers, 64 units
in the last place for a loss and 128 of its tensor's largest entry for a gradient. Under autocast the plain head rounds
its logits, the fused one does not: each is compared with the fp32 run, and ours may err twice as much.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers.causal_lms import causal_lm
from helpers.launch import torchrun
from helpers.peers import VOCAB
from helpers.trl_trainers import assert_same, assert_same_metrics, number_words, options, rows, trl_loss

from vdengine.errors import InputError
from vdengine.integrations.fused_head import use_in_trl, use_linear_logprob

transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 250, (4, 17), generator=torch.Generator().manual_seed(0))


def batch(ids=IDS):
    """A prompt of its own length in each row, that is not scored, and a padded end."""
    labels = ids.clone()
    for i, row in enumerate(labels):
        row[: 2 * i] = -100
        row[len(row) - i :] = -100
    return {"input_ids": ids, "labels": labels}


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "granite", "phi", "gpt2", "mamba"])
def test_every_kind_of_head(kind):
    """Guards the loss and every gradient: a tied head, a soft cap, a scale, a bias; a mean and a given denominator."""
    model = causal_lm(kind).eval()  # no dropout
    for more in ({}, {"num_items_in_batch": torch.tensor(50)}):
        theirs = loss_and_gradients(model, **batch(), **more)
        with use_linear_logprob(model):
            ours = loss_and_gradients(model, **batch(), **more)
        assert_same(*ours, *theirs)


def test_labels_are_taken_as_transformers_takes_them():
    """Guards the other ways to give labels: shifted beforehand, another ignore_index, by position, none scored."""
    model = causal_lm("qwen3")
    inputs = batch()
    shifted = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    other = inputs["labels"].masked_fill(inputs["labels"] == -100, 7)
    none = torch.full_like(IDS, -100)
    calls = [
        ((), inputs | {"shift_labels": shifted.roll(1, 0)}),
        ((), inputs | {"labels": other, "ignore_index": 7}),
        ((IDS, None, None, None, None, inputs["labels"]), {}),
        ((), inputs | {"labels": none, "num_items_in_batch": 5}),
        ((), inputs | {"labels": none}),
    ]
    theirs = [model(*args, **kwargs).loss for args, kwargs in calls]
    with use_linear_logprob(model):
        ours = [model(*args, **kwargs).loss for args, kwargs in calls]
    assert ours[-2] == theirs[-2] == 0 and ours[-1].isnan() and theirs[-1].isnan()
    assert torch.allclose(torch.stack(ours), torch.stack(theirs), rtol=2**-17, atol=0, equal_nan=True)


def test_without_labels_the_model_is_what_it_was():
    """Guards evaluation with logits, generate, state dicts and copies; and that nothing is left after removal."""
    model = causal_lm("gemma2").eval()
    cls, head_cls, names = type(model), type(model.lm_head), list(model.state_dict())
    logits, written = model(input_ids=IDS).logits, model.generate(IDS, max_new_tokens=4, do_sample=False)
    handle = use_linear_logprob(model)
    assert torch.equal(model(input_ids=IDS).logits, logits)
    assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), written)
    out = model(**batch())
    assert "logits" not in out and out.logits is None
    assert model(**batch(), return_dict=False)[1] is None
    assert list(model.state_dict()) == names and isinstance(model, cls) and type(model).__name__ == cls.__name__
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch()).loss, out.loss)
    handle.remove()
    assert type(model) is cls and type(model.lm_head) is head_cls and model(**batch()).logits is not None
    assert twin(**batch()).logits is None  # a model of its own


def test_no_softmax_is_kept_beyond_the_allowance():
    """Guards memory: with `saved_bytes=0` nothing of the vocabulary's width is held for backward but the weight; only
    scored rows reach the kernel."""
    model = causal_lm("qwen3")
    inputs, widths = batch(), []
    with use_linear_logprob(model, saved_bytes=0):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: widths.append(tuple(t.shape)) or t, lambda t: t):
            model(**inputs)
    assert not any(shape[-1:] == (259,) for shape in widths if shape[0])
    scored = int((inputs["labels"][:, 1:] != -100).sum())
    assert (scored, 48) in widths and (IDS.numel(), 48) not in widths[-8:]


class Recorder(transformers.TrainerCallback):
    """The gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(folder, fused, *, adapt=None, kind="qwen3", **more):
    """Two steps of three micro-batches by transformers.Trainer: the logged losses, and the gradients of each step."""
    model = causal_lm(kind)
    model = model if adapt is None else adapt(model)
    data = [{k: v[0] for k, v in batch(torch.randint(3, 250, (1, 17))).items()} for _ in range(12)]
    for i, row in enumerate(data):
        row["labels"][:i] = -100  # micro-batches of other numbers of scored tokens: the denominator is of all
    recorder = Recorder()
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=2, logging_steps=1,
        use_cpu=True, report_to=[], learning_rate=1e-2, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0,
        disable_tqdm=True, save_strategy="no", seed=0, **more,
    )  # fmt: skip
    if fused:
        use_linear_logprob(model)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[recorder])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == len(recorder.gradients) == 2
    return torch.tensor(losses), recorder.gradients


def lora(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))


@pytest.mark.parametrize("case", ["plain", "lora", "checkpointing"])
def test_transformers_trainer(tmp_path, case):
    """Guards accumulation (one denominator over micro-batches), a LoRA on the body whose head is frozen, and gradient
    checkpointing: every loss and gradient of two steps."""
    more = {"gradient_checkpointing": True} if case == "checkpointing" else {}
    adapt = lora if case == "lora" else None
    torch.manual_seed(0)
    losses, gradients = train(tmp_path, False, adapt=adapt, **more)
    torch.manual_seed(0)
    our_losses, our_gradients = train(tmp_path, True, adapt=adapt, **more)
    for step in (0, 1):
        assert_same(our_losses[step], our_gradients[step], losses[step], gradients[step])


def test_transformers_trainer_under_autocast(tmp_path):
    """Guards bf16 autocast: the head's GEMMs run in bf16, and the errors against fp32 are at most twice those of the
    plain head, of each tensor by its norm."""
    runs = []
    for fused, more in ((False, {}), (False, {"bf16": True}), (True, {"bf16": True})):
        torch.manual_seed(0)
        runs.append(train(tmp_path, fused, kind="gemma2", **more))
    (exact, true), (plain, theirs), (ours, mine) = runs
    assert ((ours - exact).abs() <= 2 * (plain - exact).abs() + 2**-12 * exact).all()  # 2^-12: hidden states in bf16
    for name, gradient in true[0].items():
        error, allowed = ((g[0][name] - gradient).norm() / gradient.norm() for g in (mine, theirs))
        assert 0 < error <= 2 * allowed, f"{name}: {error:.1e}, theirs {allowed:.1e}"


def test_autocast_rounds_the_operands_and_not_the_logits():
    """Guards autocast in a plain loop: the loss is that of operands in bf16, exactly multiplied."""
    model = causal_lm("llama")
    hidden = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: hidden.append(args[0].detach()))
    with use_linear_logprob(model), torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    hook.remove()
    logits = hidden[0].bfloat16().double() @ model.lm_head.weight.detach().bfloat16().double().t()
    labels = batch()["labels"][:, 1:]
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    assert abs(loss - exact) < 1e-5


def own_loss(model):
    model.loss_function = lambda logits, labels, **_: logits.sum()
    return model


def test_models_that_are_refused():
    """Guards against a head that is silently not used, or used for another loss: one line each."""
    model = causal_lm("llama")
    with use_linear_logprob(model):
        with pytest.raises(InputError, match="LlamaForCausalLM has it already"):
            use_linear_logprob(model)
        with pytest.raises(InputError, match=r"\[4, 17\] labels for \[4, 1\] positions; logits_to_keep"):
            model(**batch(), logits_to_keep=1)
        assert model(input_ids=IDS).logits.shape[-1] == 259  # the failed forward has left nothing
    with pytest.raises(InputError, match="has the loss function <lambda>; only ForCausalLMLoss"):
        use_linear_logprob(own_loss(causal_lm("llama")))
    granite = causal_lm("granite")
    granite.config = copy.deepcopy(granite.config)
    use_linear_logprob(granite)
    granite.config.logits_scaling = 2.0  # what its forward reads now
    with pytest.raises(InputError, match="GraniteForCausalLM makes logits .* not supported"):
        granite(**batch())


def test_an_adapter_on_the_head_afterwards_is_found():
    """Guards PEFT that wraps the head after it was patched: its adapter would have been left out."""
    peft = pytest.importorskip("peft")
    model = causal_lm("qwen3")
    use_linear_logprob(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(InputError, match="carries an adapter of PEFT"):
        adapted(**batch())


@pytest.mark.slow
def test_fsdp2_with_the_head_as_its_own_unit(tmp_path):
    """Guards the head under FSDP2: its weight is gathered in forward and again for backward, gradients are the mean
    over ranks; also of a DTensor outside of its module, and after removal the model has its logits."""
    from helpers.fused_heads import KIND, batch, gradients

    from vdengine.kernels import linear_logprob

    torchrun(2, "fused_heads", tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model = causal_lm(KIND)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    losses = [model(**batch(rank)).loss for rank in (0, 1)]
    (sum(losses) / 2).backward()
    for rank, found in enumerate(ranks):
        assert_same(found["loss"], found["gradients"], losses[rank].detach(), gradients(model))
        assert torch.allclose(found["logits"], model(input_ids=batch(rank)["input_ids"]).logits, rtol=0, atol=1e-5)
    weight = model.lm_head.weight
    weight.grad = None
    for rank in (0, 1):
        hidden = torch.randn(7, weight.shape[1], generator=torch.Generator().manual_seed(rank))
        (linear_logprob(hidden, weight, torch.arange(7)).sum() / 2).backward()
    assert all(torch.allclose(found["outside"], weight.grad, rtol=2**-20, atol=1e-6) for found in ranks)


# ---------------------------------------------------------------------------------------------------------------- TRL


def trl_trainer(name, kind, folder):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model, reference = (causal_lm(kind, seed) for seed in (0, 1))
    for m in (model, reference):
        m.resize_token_embeddings(VOCAB)
    if name == "SFT":
        data = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()]
        arguments, more = trl.SFTConfig(**options(folder, packing=False, shuffle_dataset=False)), {}
    else:
        data, arguments, more = rows(), trl.DPOConfig(**options(folder, beta=0.1)), {"ref_model": reference}
    make = getattr(trl, f"{name}Trainer")
    data = datasets.Dataset.from_list(data)
    return make(model, args=arguments, train_dataset=data, processing_class=number_words(), **more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_trl_trainers(name, kind, tmp_path):
    """Guards the contract of TRL's fused head: the loss, every gradient and every metric of its trainers."""
    utils = pytest.importorskip("trl.trainer.utils")
    theirs = utils._ChunkedLogProbFunction
    trainer = trl_trainer(name, kind, tmp_path)
    loss, gradients, _ = trl_loss(trainer)
    metrics = {k: v[-1] for k, v in trainer._metrics["train"].items()}
    with use_in_trl():
        ours, our_gradients, _ = trl_loss(trainer)
        with pytest.raises(InputError, match="in use already"):
            use_in_trl()
    assert utils._ChunkedLogProbFunction is theirs
    assert_same(ours, our_gradients, loss, gradients)
    found = {k: v[-1] for k, v in trainer._metrics["train"].items()}
    assert found.keys() == metrics.keys() and {"entropy", "mean_token_accuracy"} <= metrics.keys()
    compared = [k for k in metrics if k != "num_tokens"]  # TRL's counts up
    assert_same_metrics(found, metrics, compared, max(abs(v) for v in metrics.values()))


def test_trl_output_has_what_is_asked_for():
    """Guards the tuple behind FusedCausalLMOutput against TRL's own: which entries there are, their dtypes, values."""
    chunked = pytest.importorskip("trl.kernels.chunked_logprob")
    from vdengine.integrations.fused_head import TRLKernel

    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=g) for s in ((9, 24), (61, 24), (61,)))
    targets = torch.randint(0, 61, (9,), generator=g)
    for asked in (("log_probs",), ("log_probs", "entropy"), ("log_probs", *chunked.OPTIONAL_OUTPUTS)):
        arguments = (hidden, weight, bias, targets, 0.7, 32, 5.0, 0.5, asked)
        theirs, ours = chunked.ChunkedLogProbFunction.apply(*arguments), TRLKernel.apply(*arguments)
        assert [x is None for x in ours] == [x is None for x in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a is None or (a.dtype == b.dtype and torch.allclose(a.float(), b.float(), rtol=0, atol=1e-5))
