"""ExCB as its equations read: plain loops in float64, to test the package against.

Written from METHOD.md (sections 1 to 7) and the seed's supplementary alone. Nothing here imports
the package or ``torch.nn``; a sum in an equation is a loop. Values that need gradients are float64
tensors, so that autograd differentiates the loops. Only for small sizes.

G, L global and local views; B images; K clusters; D dimensions; d inputs. Views are ordered global
first; as rows, view v holds rows v * B to (v + 1) * B.
"""

import math

import torch


def balance(z, sizes, below="linear", tolerance=1.0):
    """z^B = B(z; s), in the two printed steps. [METHOD.md 3; seed, Alg. 1 `balancing`]

    "exponential": below r = 1 the weight r becomes exp(1 - 1 / r), 0 at r = 0 (Table 1, ours).
    "tolerance": sizes within this factor of 1/K count as 1/K, others as nearer to it by the factor
    (ours).
    """
    if below not in ("linear", "exponential"):
        raise ValueError(f"below={below!r}")
    n_rows, n_clusters = z.shape
    rows = []
    for i in range(n_rows):
        row = []
        for k in range(n_clusters):
            r = float(sizes[k]) * n_clusters
            if 1.0 / tolerance <= r <= tolerance:
                r = 1.0
            elif r > tolerance:
                r /= tolerance
            else:
                r *= tolerance
            if r >= 1.0:
                weight, shrink = 1.0, 1.0 / r
            elif below == "linear":
                weight, shrink = r, 1.0
            else:
                weight, shrink = (math.exp(1.0 - 1.0 / r) if r > 0.0 else 0.0), 1.0
            first = 1.0 - (1.0 - z[i, k]) * weight
            row.append((1.0 + first) * shrink - 1.0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def sinkhorn_knopp(z, temperature, n_iterations):
    """Soft assignments of a batch to equal clusters. [Caron et al. 2020, SwAV, Appendix A]

    By turns, columns (clusters) of exp(z / temperature) are scaled to 1/K and rows to 1/n.
    """
    q = torch.exp(z.double() / temperature)
    n_rows, n_clusters = q.shape
    for _ in range(n_iterations):
        for k in range(n_clusters):
            q[:, k] = q[:, k] / q[:, k].sum() / n_clusters
        for i in range(n_rows):
            q[i] = q[i] / q[i].sum() / n_rows
    return q * n_rows


def centred(z, center, temperature):
    """Targets of DINO: softmax after the running mean is subtracted. [Caron et al. 2021, Alg. 1]"""
    return torch.stack([softmax((row - center) / temperature) for row in z.double()])


def center_update(center, z, momentum):
    """Running mean of the similarities to each cluster. [Caron et al. 2021, equation 4]"""
    mean = torch.zeros_like(center)
    for row in z.double():
        mean = mean + row / len(z)
    return momentum * center + (1 - momentum) * mean


def labels_of(z):
    """Hard labels: the argmax of each row, the first index on ties. [METHOD.md 4]"""
    labels = []
    for i in range(z.shape[0]):
        best = 0
        for k in range(1, z.shape[1]):
            if float(z[i, k].detach()) > float(z[i, best].detach()):
                best = k
        labels.append(best)
    return labels


def size_update(sizes, labels, momentum, n_clusters):
    """s <- m_s s + (1 - m_s) s_B, s_B the counts of all labels over their number. [METHOD.md 4]

    ``labels`` is a list or a tensor of any shape; every entry counts once.
    """
    flat = torch.as_tensor(labels).flatten().tolist()
    counts = [0] * n_clusters
    for label in flat:
        counts[label] += 1
    new = []
    for k in range(n_clusters):
        batch_size_of_k = counts[k] / len(flat)
        new.append(momentum * float(sizes[k]) + (1.0 - momentum) * batch_size_of_k)
    return torch.tensor(new, dtype=torch.float64)


def log_softmax(scores):
    """log p_k = y_k - log sum_j exp(y_j), for one row (K,) already divided by tau. [METHOD.md 5]"""
    largest = max(float(score.detach()) for score in scores)  # a constant: it cancels
    total = 0.0
    for score in scores:
        total = total + torch.exp(score - largest)
    return torch.stack([score - largest - torch.log(total) for score in scores])


def softmax(scores):
    """p_k = exp(y_k) / sum_j exp(y_j), for one row (K,). [METHOD.md 5]"""
    return torch.exp(log_softmax(scores))


def pair_loss(p_teacher, log_p):
    """-sum_k p_t[k] log p[k], mean over the batch; both (B, K). [METHOD.md 5; seed, Alg. 1]"""
    n_images, n_clusters = p_teacher.shape
    total = 0.0
    for i in range(n_images):
        for k in range(n_clusters):
            total = total - p_teacher[i, k] * log_p[i, k]
    return total / n_images


def mean_of_pairs(p_teacher, log_p, *, same_view, local):
    """Mean of `pair_loss` over ordered pairs (teacher view v, student view u). [METHOD.md 5]

    ``p_teacher`` (G, B, K), ``log_p`` (G + L, B, K). ``same_view``: the pairs v = u are in;
    ``local``: the local student views are in. Zero if no pair is left.
    """
    n_global, n_views = len(p_teacher), len(log_p)
    total = torch.zeros((), dtype=torch.float64)
    n_pairs = 0
    for v in range(n_global):
        for u in range(n_views):
            if u == v and not same_view:
                continue
            if u >= n_global and not local:
                continue
            total = total + pair_loss(p_teacher[v], log_p[u])
            n_pairs += 1
    return total / n_pairs if n_pairs else total


def loss(
    z_teacher,
    z_h,
    z_g,
    sizes,
    *,
    n_global,
    teacher_temperature,
    student_temperature,
    below="linear",
    local_in_loss_h=True,
):
    """(loss, loss_h, loss_g), loss = (loss_h + loss_g) / 2. [METHOD.md 5, weights: 7 "halves"]

    ``z_teacher`` (G, B, K) before balancing; ``z_h``, ``z_g`` (G + L, B, K). What comes of the
    teacher is detached.
    """
    if len(z_teacher) != n_global or len(z_h) != len(z_g) or len(z_h) < n_global:
        raise ValueError("needs G teacher views and the same G + L student views twice")
    p_teacher = []
    for view in z_teacher.detach():
        balanced = balance(view, sizes, below)
        p_teacher.append(torch.stack([softmax(row / teacher_temperature) for row in balanced]))
    log_p_h, log_p_g = (
        [torch.stack([log_softmax(row / student_temperature) for row in view]) for view in z]
        for z in (z_h, z_g)
    )
    # h: G (G + L - 1) pairs, or G (G - 1); g: G (G + L) pairs
    loss_h = mean_of_pairs(p_teacher, log_p_h, same_view=False, local=local_in_loss_h)
    loss_g = mean_of_pairs(p_teacher, log_p_g, same_view=True, local=True)
    return (loss_h + loss_g) / 2, loss_h, loss_g


def normalised(x):
    """Each row over its L2 norm. [METHOD.md 2; seed, Alg. 2]"""
    rows = []
    for i in range(x.shape[0]):
        square = 0.0
        for j in range(x.shape[1]):
            square = square + x[i, j] * x[i, j]
        rows.append(x[i] / torch.sqrt(square))
    return torch.stack(rows)


def similarities(x, centroids, detach):
    """z = cosine of every row (rows, D) with every centroid (K, D). [METHOD.md 1; seed, Alg. 2]

    ``detach`` cuts the gradient to the centroids, never that to the rows.
    """
    x_unit = normalised(x)
    c_unit = normalised(centroids.detach() if detach else centroids)
    rows = []
    for i in range(x.shape[0]):
        row = []
        for k in range(centroids.shape[0]):
            dot = 0.0
            for j in range(x.shape[1]):
                dot = dot + x_unit[i, j] * c_unit[k, j]
            row.append(dot)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def linear(x, weight, bias):
    """y_io = sum_j W_oj x_ij + b_o."""
    rows = []
    for i in range(x.shape[0]):
        row = []
        for o in range(weight.shape[0]):
            value = 0.0
            for j in range(weight.shape[1]):
                value = value + weight[o, j] * x[i, j]
            row.append(value if bias is None else value + bias[o])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def batch_norm(x, gain, bias, eps):
    """Training mode: each column by its own mean and biased variance over these rows."""
    n_rows = x.shape[0]
    columns = []
    for j in range(x.shape[1]):
        mean = 0.0
        for i in range(n_rows):
            mean = mean + x[i, j] / n_rows
        variance = 0.0
        for i in range(n_rows):
            variance = variance + (x[i, j] - mean) * (x[i, j] - mean) / n_rows
        columns.append((x[:, j] - mean) / torch.sqrt(variance + eps) * gain[j] + bias[j])
    return torch.stack(columns, dim=1)


def forward(layers, x):
    """The layers in turn on (rows, in), all rows one batch. [METHOD.md 2; BatchNorm in training: 6]

    A layer is ("linear", W (out, in), b (out,) or None), ("batch_norm", gain, bias, eps),
    ("relu",) or ("gelu",), the exact x (1 + erf(x / sqrt 2)) / 2.
    """
    for kind, *values in layers:
        if kind == "linear":
            x = linear(x, *values)
        elif kind == "batch_norm":
            x = batch_norm(x, *values)
        elif kind == "relu":
            x = x * (x.detach() > 0)
        elif kind == "gelu":
            x = x * (1.0 + torch.erf(x / math.sqrt(2.0))) / 2.0
        else:
            raise ValueError(f"layer {kind!r}")
    return x


PARTS = ("backbone", "projector", "predictor")


def parameters(network):
    """{name: tensor} of a student or teacher: "part.index.weight", "part.index.bias", "centroids".

    The gain of a BatchNorm is its "weight". Layers and biases that are not there have no name.
    """
    named = {}
    for part in PARTS:
        for index, (kind, *values) in enumerate(network.get(part, [])):
            if kind in ("linear", "batch_norm"):
                named[f"{part}.{index}.weight"] = values[0]
                if values[1] is not None:
                    named[f"{part}.{index}.bias"] = values[1]
    named["centroids"] = network["centroids"]
    return named


def with_parameters(network, named):
    """The same network with other tensors, by the names of `parameters`."""
    new = {"centroids": named["centroids"]}
    for part in PARTS:
        if part not in network:
            continue
        new[part] = []
        for index, (kind, *values) in enumerate(network[part]):
            if kind in ("linear", "batch_norm"):
                weight = named[f"{part}.{index}.weight"]
                bias = named.get(f"{part}.{index}.bias")
                new[part].append((kind, weight, bias, *values[2:]))
            else:
                new[part].append((kind,))
    return new


def decay_of(weight_decay, name):
    """``weight_decay`` for one parameter: a number for all, {name: number} (else 0), a function."""
    if weight_decay is None:
        return 0.0
    if callable(weight_decay):
        return weight_decay(name)
    if isinstance(weight_decay, dict):
        return weight_decay.get(name, 0.0)
    return weight_decay


def sgd(named, gradients, buffers, *, learning_rate, momentum, weight_decay):
    """Heavy ball as in `torch.optim.SGD`, no Nesterov; (parameters, buffers). [METHOD.md 6]

    buf = mu buf + (grad + wd param), the first buf the gradient; param = param - lr buf.
    """
    new, new_buffers = {}, {}
    for name, value in named.items():
        gradient = gradients[name] + decay_of(weight_decay, name) * value
        old = buffers.get(name)
        new_buffers[name] = gradient if old is None else momentum * old + gradient
        new[name] = value - learning_rate * new_buffers[name]
    return new, new_buffers


def teacher_update(teacher, student, momentum):
    """mt = mt m + ms (1 - m), parameters only, raw centroid rows. [METHOD.md 2, 6; seed, Alg. 1]"""
    of_student = parameters(student)
    new = {}
    for name, value in parameters(teacher).items():
        new[name] = value * momentum + of_student[name] * (1.0 - momentum)
    return with_parameters(teacher, new)


def rows_of(views):
    """(views, B, ...) to rows, view after view."""
    return torch.stack([row for view in views for row in view])


def views_of(rows, n_images):
    """Rows back to (views, B, ...)."""
    n_views = len(rows) // n_images
    return torch.stack([rows[v * n_images : (v + 1) * n_images] for v in range(n_views)])


def student_similarities(student, x_global, x_local):
    """z_h and z_g, each (G + L, B, K). [METHOD.md 2; joint head statistics: 7; seed, Alg. 1]"""
    n_global, n_images = x_global.shape[:2]
    n_local = len(x_local)
    # f once a resolution; h, then g on h's raw output, once on all rows together
    features = forward(student["backbone"], rows_of(x_global))
    if n_local:
        features = torch.cat([features, forward(student["backbone"], rows_of(x_local))])
    projected = forward(student["projector"], features)
    predicted = forward(student["predictor"], projected)
    projected, predicted = views_of(projected, n_images), views_of(predicted, n_images)
    z_h, z_g = [], []
    for u in range(n_global + n_local):
        is_local = u >= n_global
        z_h.append(similarities(projected[u], student["centroids"], detach=is_local))
        z_g.append(similarities(predicted[u], student["centroids"], detach=True))
    return torch.stack(z_h), torch.stack(z_g)


def teacher_similarities(teacher, x_global):
    """z_t (G, B, K), before balancing, on the global views together. [METHOD.md 2, 7]"""
    with torch.no_grad():
        features = forward(teacher["backbone"], rows_of(x_global))
        projected = views_of(forward(teacher["projector"], features), x_global.shape[1])
        return torch.stack([similarities(x, teacher["centroids"], detach=True) for x in projected])


def training_step(
    student,
    teacher,
    sizes,
    x_global,
    x_local,
    *,
    teacher_temperature,
    student_temperature,
    teacher_momentum,
    size_momentum,
    learning_rate,
    sgd_momentum,
    momentum_buffers=None,
    weight_decay=None,
    below="linear",
    local_in_loss_h=True,
    count_labels="balanced",
):
    """One whole step. [seed, Alg. 1, with the "ours" column of METHOD.md 7; 2, 4, 5, 6]

    ``student``: "backbone", "projector", "predictor", each a list of layers (see `forward`), and
    "centroids", raw rows (K, D). ``teacher``: the same without "predictor". ``x_global``
    (G, B, d), ``x_local`` (L, B, d), L may be 0. ``weight_decay``: see `decay_of`. Returns a dict;
    what came in is left as it was.
    """
    if count_labels not in ("balanced", "plain"):
        raise ValueError(f"count_labels={count_labels!r}")
    leaves = {n: p.detach().clone().requires_grad_() for n, p in parameters(student).items()}
    z_h, z_g = student_similarities(with_parameters(student, leaves), x_global, x_local)
    z_t = teacher_similarities(teacher, x_global)
    total, loss_h, loss_g = loss(
        z_t,
        z_h,
        z_g,
        sizes,
        n_global=len(x_global),
        teacher_temperature=teacher_temperature,
        student_temperature=student_temperature,
        below=below,
        local_in_loss_h=local_in_loss_h,
    )

    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = {}
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        gradients[name] = torch.zeros_like(leaf) if gradient is None else gradient
    named, buffers = sgd(
        {name: leaf.detach() for name, leaf in leaves.items()},
        gradients,
        momentum_buffers or {},
        learning_rate=learning_rate,
        momentum=sgd_momentum,
        weight_decay=weight_decay,
    )
    new_student = with_parameters(student, named)

    # labels by the sizes that made this loss, and only then the new sizes
    counted = [balance(z, sizes, below) if count_labels == "balanced" else z for z in z_t]
    labels = torch.tensor([labels_of(z) for z in counted])
    return {
        "loss": total.detach(),
        "loss_h": loss_h.detach(),
        "loss_g": loss_g.detach(),
        "labels": labels,
        "gradients": gradients,
        "student": new_student,
        "teacher": teacher_update(teacher, new_student, teacher_momentum),
        "sizes": size_update(sizes, labels, size_momentum, len(sizes)),
        "momentum_buffers": buffers,
    }
