"""Centroids, heads, the teacher, the schedules: who takes which gradient and which average."""

import copy

import pytest
import torch
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.method.schedules import cosine, warmup_cosine
from sklearn_excb.networks.backbones import RowMLP, SmallCNN
from sklearn_excb.networks.heads import HeadShape, mlp
from sklearn_excb.networks.student_teacher import CentroidLayer, build_networks
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.optimizer import Plan, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return build_networks(RowMLP(5, width=8), 8, n_clusters=6, head_width=16).train_mode()


def test_centroids_are_unit_rows_and_similarities_cosines():
    layer = CentroidLayer(4, 3)
    with torch.no_grad():
        layer.weight.mul_(7)
    x = torch.randn(10, 3)
    z = layer(x)
    expected = nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=-1)
    torch.testing.assert_close(z, expected)


def test_detached_similarities_send_no_gradient_to_the_centroids():
    layer, x = CentroidLayer(4, 3), torch.randn(10, 3, requires_grad=True)
    layer(x, detach=True).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_the_teacher_starts_as_the_student_without_a_predictor(networks):
    assert networks.teacher.predictor is None
    student = dict(networks.student.named_parameters())
    for name, parameter in networks.teacher.named_parameters():
        assert torch.equal(parameter, student[name])
        assert not parameter.requires_grad


def test_the_teacher_is_an_average_of_parameters_and_keeps_its_own_buffers(networks):
    x = torch.randn(12, 5)
    networks.student.project([x])
    with torch.no_grad():
        for parameter in networks.student.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(networks.teacher.state_dict())
    networks.update_teacher(0.9)
    parameters = dict(networks.teacher.named_parameters())
    for name, value in networks.teacher.state_dict().items():
        expected = before[name] + 0.1 if name in parameters else before[name]
        torch.testing.assert_close(value, expected)


def test_the_teachers_batch_norm_trains_and_nothing_else_of_it():
    backbone = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    networks = build_networks(backbone, 8, n_clusters=4, head_width=8).train_mode()
    teacher = networks.teacher.backbone
    assert teacher[1].training
    assert not teacher[2].training
    running = teacher[1].running_mean.clone()
    networks.teacher.project([torch.randn(6, 5) + 3])
    assert not torch.equal(teacher[1].running_mean, running)


def test_heads_follow_the_backbones_normalisation():
    with_norm = build_networks(SmallCNN(1, 4), 128, n_clusters=4, head_width=8).student
    without = build_networks(nn.Linear(5, 8), 8, n_clusters=4, head_width=8).student
    kinds = [[type(m) for m in network.projector] for network in (with_norm, without)]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds[0] == [*hidden, *hidden, nn.Linear]
    assert kinds[1] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert type(without.predictor[0]) is nn.BatchNorm1d
    assert with_norm.projector[0].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert with_norm.projector[0].bias.abs().max() == 0


@pytest.mark.parametrize(
    ("n_features", "tolerance"), [(2, 1e-5), (255, 1e-5), (256, 0.15), (1000, 0.35)]
)
def test_a_linear_projector_keeps_distances(n_features, tolerance):
    torch.manual_seed(0)
    backbone = nn.Identity()
    networks = build_networks(backbone, n_features, n_clusters=4, head_width=8, linear=True)
    networks.set_feature_statistics(3.0)
    x = torch.randn(20, n_features, dtype=torch.float64)
    given = nn.functional.pad(x, (0, 1), value=3.0)
    for network in (networks.student, networks.teacher):
        projections = network.double().project([x])
        kept = torch.cdist(projections, projections), projections.norm(dim=1)
        wanted = torch.cdist(given, given), given.norm(dim=1)
        torch.testing.assert_close(kept, wanted, rtol=tolerance, atol=1e-4)
        ratio = (kept[0].mean() / wanted[0].mean()).item()
        assert ratio == pytest.approx(1, rel=0.05)


def test_a_projector_of_features_as_they_are_keeps_distances_about_their_mean():
    torch.manual_seed(0)
    how = {"n_clusters": 4, "head_width": 8, "linear": True, "standardized": True}
    networks = build_networks(nn.Identity(), 7, **how)
    x = 5 + 2 * torch.randn(20, 7)
    networks.set_feature_statistics(3.0, x.mean(dim=0).double().numpy(), 2.0)
    given = nn.functional.pad((x - x.mean(dim=0)) / 2, (0, 1), value=3.0)
    for network in (networks.student, networks.teacher):
        projections = network.project([x])
        torch.testing.assert_close(projections @ projections.T, given @ given.T)
    assert networks.n_features == 7
    shape = HeadShape.of(networks.student.projector)
    assert shape == HeadShape((256,), False, "relu", standardized=True)
    again = mlp(7, shape)
    again.load_state_dict(networks.student.projector.state_dict())
    torch.testing.assert_close(again(x), networks.student.project([x]))


def test_centroids_start_as_means_of_projections(networks):
    generator = torch.Generator().manual_seed(0)
    batches = [Batch(0, [torch.randn(16, 5, generator=generator)], 16, 16) for _ in range(3)]
    facts = Facts(48, "rows", (0, 0), 5)
    settings = resolve(ExCBEstimator(K=6, batch_size=16).get_params(), facts, has_batch_norm=True)
    start_centroids(networks, batches, settings, seed=0)
    student, teacher = networks.student.centroids.weight, networks.teacher.centroids.weight
    torch.testing.assert_close(teacher.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(nn.functional.normalize(student, dim=1), teacher)
    assert (student.norm(dim=1) < 1 + 1e-5).all()
    assert student.norm(dim=1).min() < 1 - 1e-4  # means, not normalised


def test_schedules():
    assert [cosine(0.2, 1.0, p) for p in (0, 0.5, 1)] == pytest.approx([0.2, 0.6, 1.0])
    rates = [warmup_cosine(2.0, 0.1, s, warmup_steps=4, total_steps=10) for s in range(11)]
    assert rates[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert rates[7] == pytest.approx(1.05)
    assert rates[10] == pytest.approx(0.1)
    assert warmup_cosine(2.0, 0.1, 0, warmup_steps=0, total_steps=10) == 2.0


def test_rates_of_the_published_vit_recipe(networks):
    chosen = {"optimizer": "adamw", "learning_rate": 2e-3, "epochs": 800, "K": 6}
    facts = Facts(auto_rules.IMAGENET, "rows", (0, 0), 5)
    settings = resolve(ExCBEstimator().get_params() | chosen, facts, has_batch_norm=False)
    optimizer, plan = build_optimizer(networks.student, settings), Plan(1251, 1251 * 800)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(p): name for name, p in networks.student.named_parameters()}
    weights, undecayed, centroids = (
        {names[id(p)] for p in group["params"]} for group in optimizer.param_groups
    )
    assert centroids == {"centroids.weight"}
    assert all(name.endswith("weight") for name in weights)
    assert {"backbone.1.weight", "backbone.0.bias", "predictor.0.weight"} <= undecayed
    assert len(weights | undecayed | centroids) == len(names)
    # decay .04 -> .4; of the centroids .4, 1.21 midway, .4 [METHOD.md 6]
    for position, decay, of_centroids in ((0.0, 0.04, 0.4), (0.5, 0.22, 1.21), (1.0, 0.4, 0.4)):
        set_rates(optimizer, settings, round(position * plan.total_steps), plan)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == pytest.approx([decay, 0.0, of_centroids])
