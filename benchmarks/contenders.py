"""Who sweeps: the libraries as their users call them, RobustFDD's engines, and the bare passes.

Each is given the same network, the same images, all classified correctly, the same epsilons, steps, length of a step
and batch size, and ends with the predictions of the perturbed images.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Case
from benchmarks.subject import Subject
from robustfdd.classifier import batches, frozen
from robustfdd.datasets.base import to_pixels
from robustfdd.engines import get_engine
from robustfdd.measure import clean_outcome, measure_sweep
from robustfdd.models import load_model
from robustfdd.preparation import prepare
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import Outcome
from robustfdd.specs import EngineName

#: Which of the attacked images survive at each epsilon: boolean, shape (number of epsilons, number attacked).
Survivors = npt.NDArray[np.bool_]

#: Of random starts, set before every sweep: each repetition gives the same answer.
SEED = 0


class Contender(ABC):
    """One way to sweep. Made in a worker; making it is what is done once for a network.

    Attributes:
        name: in tables and options.
        needs: the module it imports that robustfdd does not depend on, and how to install it.
        by_default: whether it takes part unless asked for.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, str] | None] = None
    by_default: ClassVar[bool] = True

    def __init__(self, subject: Subject) -> None:
        self.subject, self.device = subject, torch.device(subject.device)
        self.model = load_model(subject.checkpoint, self.device)
        self.labels = torch.from_numpy(subject.labels[subject.correct]).to(self.device)
        self.images = to_pixels(torch.from_numpy(subject.images[subject.correct]).to(self.device))

    @classmethod
    def missing(cls) -> str | None:
        """How to install what is missing; None where nothing is."""
        if cls.needs is None or importlib.util.find_spec(cls.needs[0]) is not None:
            return None
        return cls.needs[1]

    @classmethod
    def offers(cls, case: Case) -> bool:  # noqa: ARG003 - most offer all
        """Whether it has the attack."""
        return True

    def run(self, task: Case) -> Survivors | None:
        """The sweep; who survives, or None where nobody is attacked."""
        return self.sweep(task)

    @abstractmethod
    def sweep(self, case: Case) -> Survivors | None:
        """As :meth:`run`."""

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in batches(len(self.images), self.subject.batch_size):
            yield self.images[part], self.labels[part]


class Art(Contender):
    """ART: its classifier made once, an attack for each epsilon, NumPy in and out."""

    name = "art"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.evasion: Any = importlib.import_module("art.attacks.evasion")
        self.classifier: Any = importlib.import_module("art.estimators.classification").PyTorchClassifier(
            model=self.model,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=subject.image_shape,
            nb_classes=subject.n_classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if self.device.type == "cuda" else "cpu",
        )
        self.x, self.y = self.images.cpu().numpy(), self.labels.cpu().numpy()

    def _attack(self, case: Case, eps: float) -> Any:
        norm = np.inf if case.norm == "linf" else 2
        size = self.subject.batch_size
        if case.attack == "fgsm":
            return self.evasion.FastGradientMethod(self.classifier, norm=norm, eps=eps, eps_step=eps, batch_size=size)
        return self.evasion.ProjectedGradientDescentPyTorch(
            self.classifier,
            norm=norm,
            eps=eps,
            eps_step=case.relative_step * eps,
            max_iter=case.steps,
            num_random_init=case.starts if case.random_start else 0,
            batch_size=size,
            verbose=False,
        )

    def sweep(self, case: Case) -> Survivors:
        """As its users write it; restarts are its own."""
        survivors = []
        with GlobalRandomness(SEED):
            for eps in case.epsilons:
                x_adv = self._attack(case, eps).generate(self.x, self.y)
                logits = self.classifier.predict(x_adv, batch_size=self.subject.batch_size)
                survivors.append(logits.argmax(1) == self.y)
        return np.stack(survivors)


class Foolbox(Contender):
    """Foolbox: an attack called with the list of epsilons, a batch at a time; its word for success is taken."""

    name = "foolbox"
    CLASSES: ClassVar[dict[tuple[str, str], str]] = {
        ("fgsm", "linf"): "LinfFastGradientAttack",
        ("fgsm", "l2"): "L2FastGradientAttack",
        ("bim", "linf"): "LinfBasicIterativeAttack",
        ("bim", "l2"): "L2BasicIterativeAttack",
        ("pgd", "linf"): "LinfProjectedGradientDescentAttack",
        ("pgd", "l2"): "L2ProjectedGradientDescentAttack",
    }

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.foolbox: Any = importlib.import_module("foolbox")
        self.wrapped: Any = self.foolbox.PyTorchModel(self.model, bounds=(0, 1), device=self.device)

    def sweep(self, case: Case) -> Survivors:
        """As its users write it; an image is broken if any of the starts breaks it."""
        cls = getattr(self.foolbox.attacks, self.CLASSES[case.attack, case.norm])
        attack = cls() if case.attack == "fgsm" else cls(rel_stepsize=case.relative_step, steps=case.steps)
        survivors = []
        with GlobalRandomness(SEED):
            for x, y in self._batches():
                broken = torch.zeros(len(case.epsilons), len(x), dtype=torch.bool, device=self.device)
                for _ in range(case.starts):
                    _, _, success = attack(self.wrapped, x, y, epsilons=list(case.epsilons))
                    broken |= success
                survivors.append(~broken.cpu().numpy())
        return np.concatenate(survivors, axis=1)


class AdvLib(Contender):
    """adv-lib: its one attack of this kind, ``pgd_linf``.

    It returns the last adversarial one of the points at which it took a gradient, and never looks at the point that
    the last step leads to; so it has no FGSM, and its answers differ a little.
    """

    name = "adv-lib"
    needs = ("adv_lib", "uv pip install --build-constraints constraints/build.txt adv-lib==0.2.8 setuptools")

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.attacks: Any = importlib.import_module("adv_lib.attacks")

    @classmethod
    def offers(cls, case: Case) -> bool:
        """Whether it has the attack."""
        return case.norm == "linf" and case.attack in ("bim", "pgd")

    def sweep(self, case: Case) -> Survivors:
        """As its users write it; restarts are its own."""
        survivors = []
        with GlobalRandomness(SEED):
            for x, y in self._batches():
                for eps in case.epsilons:
                    x_adv = self.attacks.pgd_linf(
                        self.model,
                        x,
                        y,
                        eps,
                        steps=case.steps,
                        random_init=case.random_start,
                        restarts=case.starts,
                        relative_step_size=case.relative_step,
                    )
                    with torch.no_grad():
                        survivors.append((self.model(x_adv).argmax(1) == y).cpu().numpy())
        n = len(case.epsilons)
        return np.stack([np.concatenate(survivors[k::n]) for k in range(n)])


class _Frozen(Contender):
    """A library given a network whose parameters need no gradient, which their users seldom do."""

    by_default = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.model.requires_grad_(False)


class ArtFrozen(_Frozen, Art):
    """ART on a network without parameter gradients."""

    name = "art-frozen"


class FoolboxFrozen(_Frozen, Foolbox):
    """Foolbox on a network without parameter gradients."""

    name = "foolbox-frozen"


class _Ours(Contender):
    """RobustFDD: one call for the whole sweep, on a network prepared once."""

    engine_name: ClassVar[EngineName]
    compile: ClassVar[bool] = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.engine = get_engine(self.engine_name)
        self.clean = clean_outcome(
            self.model,
            torch.from_numpy(subject.images).to(self.device),
            torch.from_numpy(subject.labels).to(self.device),
            n_classes=subject.n_classes,
            batch_size=subject.batch_size,
        )
        self.prepared = prepare(self.model, to_pixels(self.clean.images[:32]), compile=self.compile)

    @classmethod
    def offers(cls, case: Case) -> bool:
        """Whether the engine has the attack."""
        return case.norm in case.spec.norms(cls.engine_name)

    def sweep(self, case: Case) -> Survivors:
        """Through :func:`robustfdd.measure.measure_sweep`."""
        measurements = measure_sweep(
            self.model,
            self.clean,
            case.spec,
            case.threats,
            engine=self.engine,
            seed=SEED,
            batch_size=self.subject.batch_size,
            protocol=case.protocol,
            prepared=self.prepared,
        )
        return np.stack([(m.outcome == Outcome.SURVIVED)[self.subject.correct] for m in measurements])


class OurArt(_Ours):
    """RobustFDD through ART."""

    name, engine_name = "robustfdd-art", "art"


class OurFoolbox(_Ours):
    """RobustFDD through Foolbox."""

    name, engine_name = "robustfdd-foolbox", "foolbox"


class OurNative(_Ours):
    """RobustFDD's own attacks."""

    name, engine_name = "robustfdd-native", "native"


class OurNativeCompiled(OurNative):
    """RobustFDD's own attacks on a network that went through ``torch.compile``."""

    name, compile, by_default = "robustfdd-native-compiled", True, False


class Bare(Contender):
    """The passes of the prepared network that a sweep needs, and nothing else: nobody is attacked.

    For each epsilon as many input gradients as there are steps, and one pass for the judgement; FGSM, whose one
    gradient does not depend on epsilon, takes it once.
    """

    name = "bare"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.prepared = prepare(self.model, self.images[:32])

    @classmethod
    def offers(cls, case: Case) -> bool:
        """Under ``strong`` how many passes there are depends on who survives."""
        return case.protocol == "paper"

    def sweep(self, case: Case) -> None:
        """Passes and gradients, on the images as they are."""
        with frozen(self.prepared):
            for x, y in self._batches():
                for k in range(len(case.epsilons)):
                    for _ in range(case.steps if case.attack != "fgsm" or k == 0 else 0):
                        watched = x.detach().requires_grad_()
                        loss = F.cross_entropy(self.prepared(watched), y, reduction="sum")
                        torch.autograd.grad(loss, watched)
                    with torch.no_grad():
                        self.prepared(x).argmax(1).cpu()


CONTENDERS: dict[str, type[Contender]] = {
    cls.name: cls
    for cls in (
        Art,
        Foolbox,
        AdvLib,
        OurArt,
        OurFoolbox,
        OurNative,
        Bare,
        ArtFrozen,
        FoolboxFrozen,
        OurNativeCompiled,
    )
}
#: Whose time and answers the others' are held against.
REFERENCE = OurNative.name
