"""What the indicators look at: attacks on one model at one radius, each run once and only when it is asked for.

Everything is measured as :mod:`robustfdd.measure` measures: budget and box are checked, the model is asked again, and
only images that were classified correctly are attacked. The predictions of a model with a random forward pass are those
of its mean over :data:`VERIFYING_PASSES` passes, so that no image counts as broken for one unlucky draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustfdd import ascent
from robustfdd.ascent import LOSSES, Ascent, Loss
from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, graded, positions
from robustfdd.audited import PgdSettings
from robustfdd.classifier import Asked, ExpectedPrediction, batches
from robustfdd.datasets.base import to_pixels
from robustfdd.engines.base import random_start
from robustfdd.errors import ConfigurationError, EngineError
from robustfdd.measure import CleanOutcome, whole_box
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AUDITED_STEPS
from robustfdd.square import square
from robustfdd.threat import Threat, in_box
from robustfdd.watched_gradient import WatchedGradient

#: Passes of a random model whose mean decides whether an image is broken.
VERIFYING_PASSES = 8
#: Passes averaged for one gradient where a random model is attacked properly (Athalye, Carlini & Wagner 2018;
#: AutoAttack's version for random models takes as many).
EOT_PASSES = 20
#: Passes where more would be beyond the audit's means. Where a picture is drawn, or an attack takes so many steps that
#: they average by themselves, it is one.
FEW_PASSES = 4


@dataclass(frozen=True)
class AuditedAttack:
    """The attack whose figure is audited: PGD on the cross-entropy.

    The default is what is customary for a figure to be published: many steps, their length so that the whole radius can
    be crossed more than once, the best iterate.

    Attributes:
        steps: input gradients for each image.
        relative_step: their length in units of the radius; ``2.5 / steps`` when None.
        random_start: whether it begins at a random point of the ball.
        best_iterate: whether the iterate of the largest margin counts, or the last one.

    Raises:
        ConfigurationError: ``steps`` is below 1, or ``relative_step`` not a finite number above 0.
    """

    steps: int = AUDITED_STEPS
    relative_step: float | None = None
    random_start: bool = True
    best_iterate: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(f"audit: steps must be at least 1, not {self.steps}")
        if self.relative_step is not None and not 0 < self.relative_step < math.inf:
            raise ConfigurationError(
                f"audit: relative_step must be a finite number above 0 (in units of epsilon), not {self.relative_step}"
            )

    @property
    def step(self) -> float:
        """Length of a step in units of the radius."""
        return 2.5 / self.steps if self.relative_step is None else self.relative_step

    def __str__(self) -> str:
        return str(PgdSettings(self.steps, self.step, self.random_start, self.best_iterate))


@dataclass(frozen=True)
class Attempt:
    """What one attack came to on the images that were classified correctly.

    Attributes:
        name: of the attack, for people.
        broken: whether the model is wrong on the perturbed image; boolean, shape (N,). False for images that the
            attack was not run on.
        ascent: how the loss went, image by image; None for attacks that do not climb one.
        undefined: images with a gradient on the way that is NaN or infinite; boolean, shape (N,). None for attacks
            without gradients.
    """

    name: str
    broken: Tensor
    ascent: Ascent | None = None
    undefined: Tensor | None = None


class Evidence:
    """One model at one radius, and the attacks on it.

    Args:
        model: a frozen classifier.
        clean: what it says of the images before any attack.
        threat: norm and radius, above 0, in pixel units.
        attack: the attack whose figure is audited.
        sibling: a model for the same data that is not defended; None where there is none.
        seed: of every random draw.
        batch_size: images attacked at once.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: CleanOutcome,
        threat: Threat,
        *,
        attack: AuditedAttack,
        sibling: nn.Module | None,
        seed: int,
        batch_size: int,
    ) -> None:
        self.model, self.clean, self.threat, self.attack = Asked(model), clean, threat, attack
        self.sibling, self.seed, self.batch_size = sibling, seed, batch_size
        self.gradient_passes = self.forward_passes = 0
        self.attempts: list[Attempt] = []
        self.x = to_pixels(clean.images[clean.correct])
        self.y = clean.labels[clean.correct]

    # What everything is counted in.

    @property
    def eot_samples(self) -> int:
        """Passes that the audited attack averages for one gradient; 0 for a deterministic model."""
        return self.clean.eot_samples

    @property
    def random(self) -> bool:
        """Whether the forward pass is random in evaluation."""
        return self.eot_samples > 0

    @property
    def n_images(self) -> int:
        """Test images, misclassified ones included: the denominator of every accuracy."""
        return len(self.clean.labels)

    @property
    def one_image(self) -> float:
        """In percentage points of all images."""
        return 100 / self.n_images

    def points(self, images: Tensor) -> float:
        """A choice of the attacked images, in percentage points of all images."""
        return 100 * int(images.sum()) / self.n_images

    def accuracy(self, attempt: Attempt) -> float:
        """Robust accuracy under an attack, in percent of all images."""
        return self.points(~attempt.broken)

    @property
    def clean_accuracy(self) -> float:
        """In percent."""
        return 100 * len(self.y) / self.n_images

    @property
    def chance(self) -> float:
        """What guessing comes to, in percent."""
        return 100 / self.clean.n_classes

    def found_more(
        self,
        images: Tensor,
        text: str,
        *,
        warning: float = WARNING_POINTS,
        alarm: float | None = ALARM_POINTS,
        least: float | None = None,
    ) -> Finding:
        """A finding that counts images which one attack broke and another left.

        Args:
            images: which of the attacked images, boolean, shape (N,).
            text: what was found; ``{points}`` in it becomes their number in percentage points.
            warning: of :func:`robustfdd.audit.base.graded`.
            alarm: likewise.
            least: likewise; one image when None.
        """
        points = self.points(images)
        status = graded(points, warning=warning, alarm=alarm, least=self.one_image if least is None else least)
        return Finding(status, points, text.replace("{points}", f"{points:.1f}"), positions(images))

    # How attacks are run.

    def expected(self, passes: int) -> nn.Module:
        """The model, or the mean over passes of a random one."""
        return ExpectedPrediction(self.model, passes) if self.random and passes > 1 else self.model

    def surrogate(self, passes: int) -> WatchedGradient:
        """What an attack differentiates: :meth:`expected`, which notes the gradients that are no numbers."""
        return WatchedGradient(self.expected(passes))

    def predict(self, x: Tensor) -> Tensor:
        """The predicted class of each image, int64, shape (N,)."""
        judge = self.expected(VERIFYING_PASSES)
        size = max(self.batch_size // (VERIFYING_PASSES if self.random else 1), 1)
        with GlobalRandomness(self.seed + 1):
            parts = [ascent.forward(judge, x[part]).argmax(1) for part in batches(len(x), size)]
        self.forward_passes += len(x) * (VERIFYING_PASSES if self.random else 1)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)

    def start(self, salt: int, n: int, threat: Threat) -> Tensor:
        """Random points of the ball as perturbations, the same for the same salt."""
        rng = np.random.default_rng([self.seed, salt])
        return torch.from_numpy(random_start(rng, n, tuple(self.x.shape[1:]), threat)).to(self.x.device)

    def border(self, salt: int, n: int) -> Tensor:
        """Random points of the ball's surface as perturbations: of its corners in L-infinity, the same for a salt."""
        return self.threat.eps * ascent.direction(self.start(salt, n, self.threat), self.threat.norm)

    def climb(
        self,
        name: str,
        *,
        loss: Loss = ascent.cross_entropy,
        steps: int,
        relative_step: float | None = None,
        threat: Threat | None = None,
        on: Tensor | None = None,
        salt: int = 0,
        random_start: bool = True,
        passes: int = 1,
        auto: bool = False,
        last: bool = False,
        counts: bool = True,
        watch: bool = False,
    ) -> Attempt:
        """Run PGD or APGD and measure what it came to.

        Args:
            name: for people.
            loss: what is climbed.
            steps: input gradients for each image.
            relative_step: length of a step in units of the radius; ``2.5 / steps`` when None, at most the radius.
            threat: the ball; the audit's own when None.
            on: which of the attacked images, boolean, shape (N,); all when None.
            salt: of the random start.
            random_start: whether there is one.
            passes: averaged for one gradient of a random model.
            auto: APGD instead of PGD.
            last: whether the last iterate counts and not the best one.
            counts: whether it is an attack within the audit's threat, and so part of the worst case.
            watch: whether to climb on with an image that is broken, for its losses.
        """
        threat = threat or self.threat
        index = torch.arange(len(self.y), device=self.y.device) if on is None else on.nonzero().squeeze(1)
        drawn = self.start(salt, len(self.y), threat) if random_start else None
        stop = not (last or watch or self.random)  # one draw of a random model decides nothing
        step = min(2.5 / steps, 1.0) if relative_step is None else relative_step
        run: Callable[..., Ascent] = (
            partial(ascent.apgd, stop=stop)
            if auto
            else partial(ascent.pgd, relative_step=step, best_iterate=not last, stop=stop)
        )
        surrogate = self.surrogate(passes)
        many = passes if self.random else 1
        parts: list[Ascent] = []
        undefined = torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device)
        with GlobalRandomness(self.seed + 2):
            for part in batches(len(index), max(self.batch_size // many, 1)):
                at = index[part]
                begin = None if drawn is None else drawn[at]
                surrogate.watch(self.x[at])
                found = run(surrogate, self.x[at], self.y[at], threat, steps=steps, loss=loss, start=begin)
                parts.append(found)
                undefined[at] = surrogate.undefined
                self.spend(many * found.gradient_passes, many * found.forward_passes)
        joined = _joined(parts, self.x[index], steps)
        trace = joined if on is None else None
        return self._measured(name, joined.x_adv, index, threat, counts=counts, trace=trace, undefined=undefined)

    def spend(self, gradients: int, forwards: int) -> None:
        """Count passes."""
        self.gradient_passes += gradients
        self.forward_passes += forwards

    def _measured(
        self,
        name: str,
        x_adv: Tensor,
        index: Tensor,
        threat: Threat,
        *,
        counts: bool,
        trace: Ascent | None = None,
        undefined: Tensor | None = None,
    ) -> Attempt:
        """Whether the model is wrong on each perturbed image, after a check of budget and box."""
        valid = in_box(x_adv) & threat.within(self.x[index], x_adv)
        if not bool(valid.all()):
            raise EngineError(f"{name} left its budget or the box on {int((~valid).sum())} of {len(index)} images")
        broken = torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device)
        broken[index] = self.predict(x_adv.clamp(0, 1)) != self.y[index]
        attempt = Attempt(name, broken, trace, undefined)
        if counts:
            self.attempts.append(attempt)
        return attempt

    # The attacks. Those that only look for more are run on what is left.

    @cached_property
    def audited(self) -> Attempt:
        """The attack whose figure is audited."""
        return self.climb(
            str(self.attack),
            steps=self.attack.steps,
            relative_step=self.attack.step,
            random_start=self.attack.random_start,
            last=not self.attack.best_iterate,
            passes=max(self.eot_samples, 1),
            watch=True,
        )

    @cached_property
    def survivors(self) -> Tensor:
        """The attacked images that the audited attack did not break, boolean, shape (N,)."""
        return ~self.audited.broken

    @cached_property
    def more_steps(self) -> Attempt:
        """The audited attack with more steps from another start, on its survivors."""
        return self.climb(
            "twice the steps from another start",
            steps=max(2 * self.attack.steps, 40),
            on=self.survivors,
            salt=1,
            passes=max(self.eot_samples, 1),
        )

    @cached_property
    def reference(self) -> Tensor:
        """Survivors of every attack along the gradient of the cross-entropy, boolean, shape (N,).

        What a loss or an attack of another kind finds beyond these, the gradient of the cross-entropy hid; what these
        find beyond the audited attack, its few steps missed.
        """
        left = self.survivors & ~self.more_steps.broken
        again = self.climb(
            "APGD on the cross-entropy", steps=40, on=left, salt=2, auto=True, passes=max(self.eot_samples, 1)
        )
        return left & ~again.broken

    @cached_property
    def one_step(self) -> Attempt:
        """FGSM."""
        return self.climb(
            "FGSM", steps=1, relative_step=1.0, random_start=False, last=True, passes=max(self.eot_samples, 1)
        )

    @cached_property
    def scale_free(self) -> Mapping[str, Attempt]:
        """APGD on losses that do not vanish where a prediction is confident, on what the cross-entropy left."""
        left = self.reference
        found: dict[str, Attempt] = {}
        losses = {"margin": LOSSES["margin"], "DLR": LOSSES["dlr"]}
        if self.clean.n_classes == 2:  # of two classes DLR is not defined, and the margin is all there is
            del losses["DLR"]
        for salt, (title, loss) in enumerate(losses.items(), start=10):
            found[title] = self.climb(
                f"APGD on the {title} loss",
                steps=2 * self.few_steps,
                loss=loss,
                on=left,
                salt=salt,
                auto=True,
                passes=FEW_PASSES,
            )
            left = left & ~found[title].broken
        return found

    @property
    def few_steps(self) -> int:
        """Steps where many attacks are made; fewer for a random model, of which every prediction is several passes."""
        return 10 if self.random else 20

    #: What the logits are divided by.
    temperatures = (0.01, 0.1, 1.0, 10.0, 100.0)

    @cached_property
    def tempered(self) -> Mapping[float, Attempt]:
        """PGD on the cross-entropy of logits divided by each temperature, on all images and from one start."""
        return {
            t: self.climb(
                f"PGD on logits divided by {t:g}", steps=self.few_steps, loss=ascent.tempered_cross_entropy(t), salt=20
            )
            for t in self.temperatures
        }

    @cached_property
    def whole_box(self) -> Threat:
        """The radius that reaches every image."""
        return whole_box(self.threat.norm, tuple(self.x.shape[1:]))

    @cached_property
    def unbounded(self) -> Attempt:
        """100 steps in the whole box, half as many for a random model."""
        return self.climb("unbounded", steps=5 * self.few_steps, threat=self.whole_box, salt=30, counts=False)

    @cached_property
    def radii(self) -> tuple[float, ...]:
        """A quarter of the radius, and doubled from there up to the whole box."""
        least, most = self.threat.eps / 4, self.whole_box.eps
        n = max(math.ceil(math.log2(most / least)), 1) if most > least else 1
        return tuple(min(least * 2**i, most) for i in range(n + 1))

    @cached_property
    def curve(self) -> Mapping[float, Attempt]:
        """A few steps at each radius, from the images themselves, so that every radius begins alike."""
        return {
            eps: self.climb(
                f"PGD at {eps:g}",
                steps=self.few_steps,
                threat=Threat(self.threat.norm, eps),
                random_start=False,
                counts=eps <= self.threat.eps,
            )
            for eps in self.radii
        }

    #: Steps of the attacks whose accuracies are drawn over them.
    step_numbers = (1, 2, 5, 10, 20, 40)

    @cached_property
    def by_steps(self) -> Mapping[int, Attempt]:
        """Attacks of more and more steps, each with steps of 2.5 / steps of the radius, from the images themselves."""
        return {n: self.climb(f"PGD, {n} steps", steps=n, random_start=False) for n in self.step_numbers}

    @cached_property
    def noise(self) -> Attempt:
        """Random points of the ball and random corners, 50 of each, on the survivors."""
        left = self.survivors.clone()
        found = torch.zeros_like(left)
        for draw in range(100):
            index = left.nonzero().squeeze(1)
            if not len(index):
                break
            salt, n = 1000 + draw, len(self.y)
            delta = (self.border(salt, n) if draw % 2 else self.start(salt, n, self.threat))[index]
            x_adv = ascent.project(self.x[index], self.x[index] + delta, self.threat)
            # Asked once, and only what is wrong then as every other attack is.
            once = torch.cat(
                [ascent.forward(self.model, x_adv[part]).argmax(1) for part in batches(len(index), self.batch_size)]
            )
            self.spend(0, len(index))
            wrong = once != self.y[index]
            broken = self._measured("noise", x_adv[wrong], index[wrong], self.threat, counts=False).broken
            found |= broken
            left &= ~broken
        return self._counted(Attempt("random noise, 100 draws", found))

    @cached_property
    def transfer(self) -> Attempt | None:
        """Adversarial examples of the sibling, on what the gradient of the model itself left; None without sibling."""
        if self.sibling is None:
            return None
        index = self.reference.nonzero().squeeze(1)
        parts, sibling = [], WatchedGradient(Asked(self.sibling))
        for part in batches(len(index), self.batch_size):
            at = index[part]
            # To the end, past the sibling's own border: the farther across, the better an example transfers.
            found = ascent.pgd(
                sibling, self.x[at], self.y[at], self.threat, steps=20, relative_step=0.125, loss=ascent.margin
            )
            self.spend(found.gradient_passes, found.forward_passes)
            parts.append(found.x_adv)
        x_adv = torch.cat(parts) if parts else self.x[index]
        return self._measured("examples of the sibling", x_adv, index, self.threat, counts=True)

    #: Queries of the attack without gradients.
    queries = 500

    @cached_property
    def square(self) -> Attempt:
        """Square (Andriushchenko et al. 2020), which needs no gradient, on what the gradients left."""
        index = self.reference.nonzero().squeeze(1)
        name = f"Square, {self.queries} queries"
        if not len(index):
            return self._counted(Attempt(name, torch.zeros_like(self.survivors)))
        parts = []
        for part in batches(len(index), self.batch_size):
            at = index[part]
            streams = [np.random.default_rng([self.seed, 70, i]) for i in at.tolist()]
            found, _, asked = square(
                self.model, self.x[at], self.y[at], self.threat, queries=self.queries, p_init=0.8, streams=streams
            )
            self.spend(0, asked)
            parts.append(found)
        return self._measured(name, torch.cat(parts), index, self.threat, counts=True)

    @cached_property
    def averaged(self) -> Attempt | None:
        """20 steps along gradients averaged over many passes, on the survivors; None for a deterministic model."""
        if not self.random:
            return None
        return self.climb(
            f"PGD, gradients averaged over {EOT_PASSES} passes",
            steps=20,
            on=self.survivors,
            salt=40,
            passes=EOT_PASSES,
        )

    def _counted(self, attempt: Attempt) -> Attempt:
        self.attempts.append(attempt)
        return attempt

    @cached_property
    def worst(self) -> Tensor:
        """The images that no attack of the audit breaks, boolean, shape (N,); those not made yet are made now."""
        for made in ("audited", "more_steps", "reference", "one_step", "scale_free", "tempered", "curve", "by_steps"):
            getattr(self, made)
        for made in ("noise", "transfer", "square", "averaged"):
            getattr(self, made)
        left = torch.ones(len(self.y), dtype=torch.bool, device=self.y.device)
        for attempt in self.attempts:
            left &= ~attempt.broken
        return left


def _joined(parts: Sequence[Ascent], x: Tensor, steps: int) -> Ascent:
    """The ascents of consecutive batches as one."""
    if not parts:
        nothing: Any = torch.zeros(steps + 1, 0, device=x.device)
        return Ascent(x, nothing[0], nothing, nothing, 0, 0)
    return Ascent(
        torch.cat([part.x_adv for part in parts]),
        torch.cat([part.margin for part in parts]),
        torch.cat([part.losses for part in parts], 1),
        torch.cat([part.margins for part in parts], 1),
        sum(part.gradient_passes for part in parts),
        sum(part.forward_passes for part in parts),
    )
