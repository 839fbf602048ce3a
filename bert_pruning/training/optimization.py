"""Optimizers and learning-rate schedules for fine-tuning BERT.

One class serves both AdamW and the official BERT optimizer, which is AdamW
without bias correction; MT-DNN's Adamax is the other.
"""

import tensorflow as tf
import tf_keras as keras

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert

_register = keras.utils.register_keras_serializable(package="bert_pruning")


DECAYS = ("linear", "constant", "official", "rewind")


@_register
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a constant or a line, or rewound at each pruning.

    With `t` updates done, `w` warm-up steps and `N` steps in all, the rate is
    `peak * t / w` while `t < w`, and then

    - "constant": `peak`;
    - "linear": `peak * (N - t) / (N - w)`, from the peak down to zero;
    - "official": `peak * (N - t) / N`, which drops by `w / N` at the end of
      the warm-up, as the official BERT code does;
    - "rewind": while the sparsity rises, from step `a` to `b` in updates `I`
      steps apart, the line of `N - (b - a)` steps begins anew at each update,
      and goes on after the last: `peak * (n - (t - a) % I - a) / (n - w)`
      with `n = N - (b - a)`, but never above the peak.

    Args:
        peak: float. Highest learning rate.
        num_steps: int. Optimizer steps in all.
        warmup_steps: int. Optimizer steps of the warm-up.
        decay: "constant", "linear", "official" or "rewind".
        start: int. Updates done before the optimizer's first: of another one,
            whose line this goes on with.
        ramp: ints `(a, b, I)`. Of "rewind".

    Raises:
        UserError: if `decay` is unknown or a number is out of range.

    Example:

    ```python
    schedule = WarmupSchedule(5e-5, num_steps=100, warmup_steps=10)
    float(schedule(55))  # 2.5e-05
    ```

    Reference: [Prune Once for All](https://arxiv.org/abs/2111.05754), for
    learning-rate rewinding.
    """

    def __init__(
        self,
        peak,
        num_steps,
        warmup_steps=0,
        decay="linear",
        start=0,
        ramp=None,
    ):
        super().__init__()
        if decay not in DECAYS:
            raise UserError(
                f"--lr_schedule must be {', '.join(DECAYS[:-1])} or "
                f"{DECAYS[-1]}. Received: {decay!r}."
            )
        if (decay == "rewind") != (ramp is not None):
            raise ValueError('A ramp is for decay="rewind", which needs one.')
        if not 0 <= warmup_steps <= num_steps:
            raise UserError(
                "The warm-up must not be longer than the training. Received: "
                f"{warmup_steps} of {num_steps} steps."
            )
        self.peak = peak
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.start = start
        self.ramp = tuple(ramp) if ramp else None

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + self.start
        total = tf.cast(self.num_steps, tf.float32)
        warmup = tf.cast(self.warmup_steps, tf.float32)
        remaining = tf.maximum(total - step, 0.0)
        if self.decay == "constant":
            share = tf.ones_like(step)
        elif self.decay == "linear":
            share = remaining / tf.maximum(total - warmup, 1.0)
        elif self.decay == "rewind":
            begin, end, every = map(float, self.ramp)
            length = total - (end - begin)
            since = tf.math.floormod(step - begin, every)
            rewound = tf.where(
                step < begin, length - step, length - begin - since
            )
            share = tf.where(step < end, rewound, remaining)
            share = share / tf.maximum(length - warmup, 1.0)
            share = tf.clip_by_value(share, 0.0, 1.0)
        else:
            share = remaining / tf.maximum(total, 1.0)
        if self.warmup_steps:
            share = tf.where(step < warmup, step / warmup, share)
        return self.peak * share

    def get_config(self):
        return {
            "peak": self.peak,
            "num_steps": self.num_steps,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
            "start": self.start,
            "ramp": self.ramp,
        }


class _DecayedOptimizer(keras.optimizers.Optimizer):
    """Two slots for each variable, and weight decay within the update."""

    def __init__(
        self,
        learning_rate,
        weight_decay,
        beta_1,
        beta_2,
        epsilon,
        global_clipnorm,
        name,
        **kwargs,
    ):
        # The fused kernel below gains nothing from XLA.
        kwargs["jit_compile"] = False
        # Keras would decay in a pass of its own, by its default of 0 too; see
        # `update_step`.
        kwargs["weight_decay"] = None
        super().__init__(name=name, global_clipnorm=global_clipnorm, **kwargs)
        self.decay = weight_decay or 0.0
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._kept = {}

    def build(self, var_list):
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._momentums = [
            self.add_variable_from_reference(variable, "m")
            for variable in var_list
        ]
        self._velocities = [
            self.add_variable_from_reference(variable, "v")
            for variable in var_list
        ]

    def divide_among_tasks(self, task, kept):
        """Lets each step be one task's, which moves part of some variables.

        The rest of them and of their slots stays, and a bias correction counts
        the steps that moved an element, not those of other tasks.

        Args:
            task: int scalar variable. The number of the step's task.
            kept: list of pairs of a variable and a bool array `(tasks, ...)`,
                whose rows broadcast to the variable.
        """
        self._task = task
        self._kept = {self._var_key(v): rows for v, rows in kept}
        self._task_steps = tf.Variable(
            tf.zeros(max((len(rows) for _, rows in kept), default=1), tf.int64),
            trainable=False,
            name="task_steps",
        )

    def apply_gradients(self, grads_and_vars, **kwargs):
        """Updates the variables, and counts the step as its task's."""
        iterations = super().apply_gradients(grads_and_vars, **kwargs)
        if self._kept:
            step = tf.one_hot(
                self._task, self._task_steps.shape[0], dtype=tf.int64
            )
            self._task_steps.assign_add(step)
        return iterations

    def update_step(self, gradient, variable):
        key = self._var_key(variable)
        index = self._index_dict[key]
        rate = tf.cast(self.learning_rate, tf.float32)
        decay = self.decay if self._use_weight_decay(variable) else 0.0
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        state = variable, self._momentums[index], self._velocities[index]
        if key not in self._kept:
            self._update(gradient, *state, rate, decay, self.iterations + 1)
            return
        kept = tf.constant(self._kept[key])
        mask = tf.gather(kept, self._task)
        # Updates of each element, with this one where the task has it.
        rank = len(kept.shape) - 1
        steps = tf.reshape(
            tf.cast(self._task_steps, tf.float32), [-1, *[1] * rank]
        )
        steps = tf.reduce_sum(steps * tf.cast(kept, tf.float32), 0)
        steps = tf.maximum(steps + tf.cast(mask, tf.float32), 1.0)

        def update():
            self._update(gradient, *state, rate, decay, steps)

        if mask.shape.rank == 0:
            tf.cond(mask, update, lambda: None)
            return
        before = [tf.identity(each) for each in state]
        update()
        for each, old in zip(state, before, strict=True):
            each.assign(tf.where(mask, each, old))

    def get_config(self):
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(
                self._learning_rate
            ),
            "weight_decay": self.decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@_register
class AdamW(_DecayedOptimizer):
    """Adam with decoupled weight decay, with or without bias correction.

    Without bias correction this is the official BERT optimizer: the first
    updates are up to 6.5 times the learning rate.

    Args:
        learning_rate: float or schedule.
        weight_decay: float. Share of the weight removed per step, in units
            of the learning rate; 0 switches it off.
        bias_correction: bool. False for the official BERT optimizer.
        beta_1: float. Decay of the mean of the gradients.
        beta_2: float. Decay of the mean of their squares.
        epsilon: float. Added to the root of the mean square.
        global_clipnorm: float or None. Largest norm of all gradients
            together.

    Example:

    ```python
    optimizer = AdamW(5e-5, bias_correction=False, global_clipnorm=1.0)
    ```

    Reference: [Decoupled Weight Decay](https://arxiv.org/abs/1711.05101).
    """

    def __init__(
        self,
        learning_rate=5e-5,
        weight_decay=0.01,
        bias_correction=True,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        global_clipnorm=None,
        name="AdamW",
        **kwargs,
    ):
        super().__init__(
            *(learning_rate, weight_decay, beta_1, beta_2, epsilon),
            *(global_clipnorm, name),
            **kwargs,
        )
        self.bias_correction = bias_correction

    def _update(
        self, gradient, variable, momentum, velocity, rate, decay, steps
    ):
        if decay:
            variable.assign(variable * (1.0 - rate * decay))
        powers = (0.0, 0.0)
        if self.bias_correction:
            steps = tf.cast(steps, tf.float32)
            powers = (
                tf.pow(tf.constant(self.beta_1), steps),
                tf.pow(tf.constant(self.beta_2), steps),
            )
            if steps.shape.rank:
                self._update_corrected(
                    gradient, variable, momentum, velocity, rate, powers
                )
                return
        # One pass over memory; with both powers at zero the kernel's bias
        # correction is exactly 1. It adds epsilon to the uncorrected root.
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon * tf.sqrt(1.0 - powers[1]),
            grad=gradient,
        )

    def _update_corrected(
        self, gradient, variable, momentum, velocity, rate, powers
    ):
        """The same, with a bias correction for each element."""
        momentum.assign_add((gradient - momentum) * (1.0 - self.beta_1))
        velocity.assign_add(
            (tf.square(gradient) - velocity) * (1.0 - self.beta_2)
        )
        root = tf.sqrt(velocity / (1.0 - powers[1])) + self.epsilon
        variable.assign_sub(rate / (1.0 - powers[0]) * momentum / root)

    def get_config(self):
        return {
            **super().get_config(),
            "bias_correction": self.bias_correction,
        }


@_register
class AdamaxW(_DecayedOptimizer):
    """Adamax with decoupled weight decay and no bias correction, as MT-DNN's.

    With the gradient g, `m = beta_1 m + (1 - beta_1) g` and
    `u = max(beta_2 u, |g| + epsilon)`, a weight w moves by
    `-rate * (m / (u + epsilon) + decay * w)`.

    Args:
        learning_rate: float or schedule.
        weight_decay: float. Share of the weight removed per step, in units
            of the learning rate; 0 switches it off.
        beta_1: float. Decay of the mean of the gradients.
        beta_2: float. Decay of their largest magnitude.
        epsilon: float.
        global_clipnorm: float or None. Largest norm of all gradients
            together.

    Example:

    ```python
    optimizer = AdamaxW(5e-5, global_clipnorm=1.0)
    ```

    Reference: [Adam](https://arxiv.org/abs/1412.6980), section 7.1;
    [MT-DNN](https://arxiv.org/abs/1901.11504).
    """

    def __init__(
        self,
        learning_rate=5e-5,
        weight_decay=0.01,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        global_clipnorm=None,
        name="AdamaxW",
        **kwargs,
    ):
        super().__init__(
            *(learning_rate, weight_decay, beta_1, beta_2, epsilon),
            *(global_clipnorm, name),
            **kwargs,
        )

    def _update(
        self, gradient, variable, momentum, velocity, rate, decay, steps
    ):
        del steps  # It needs no correction.
        momentum.assign_add((gradient - momentum) * (1.0 - self.beta_1))
        velocity.assign(
            tf.maximum(self.beta_2 * velocity, tf.abs(gradient) + self.epsilon)
        )
        step = momentum / (velocity + self.epsilon)
        if decay:
            step += decay * variable
        variable.assign_sub(rate * step)


def split_decay(model):
    """Splits the trainable variables into decayed and not decayed ones.

    Kernels and embedding tables decay, biases and layer normalisation do not,
    as in the official BERT code. Wrapped kernels count as what they wrap.

    Args:
        model: a model from `build_model`, wrapped or not.

    Returns:
        Two dicts from canonical name to variable; together they hold every
        trainable variable exactly once.
    """
    decayed, excluded = {}, {}
    for name, variable in bert.named_parameters(model).items():
        weight = name.split("/")[-1]
        group = decayed if weight in ("kernel", "embeddings") else excluded
        group[name] = variable
    covered = len(decayed) + len(excluded)
    if covered != len(model.trainable_variables):
        raise RuntimeError(
            f"{len(model.trainable_variables)} trainable variables, but "
            f"{covered} in the two decay groups."
        )
    return decayed, excluded


def slots_of(optimizer, model):
    """Returns the optimizer's variables of each weight by canonical name.

    Args:
        optimizer: from `build_optimizer`, for this model.
        model: a model from `build_model`.

    Returns:
        A dict from "momentum" and "velocity" to dicts from canonical name to
        variable.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    names = {
        id(variable): name
        for name, variable in bert.named_parameters(model).items()
    }
    order = [names[id(variable)] for variable in model.trainable_variables]
    return {
        "momentum": dict(zip(order, optimizer._momentums, strict=True)),
        "velocity": dict(zip(order, optimizer._velocities, strict=True)),
    }


def build_optimizer(
    model, name, schedule, weight_decay=0.01, global_clipnorm=1.0
):
    """Builds the optimizer for a model.

    Args:
        model: a model from `build_model`, wrapped or not.
        name: "adamw" (bias-corrected, epsilon 1e-8 as in PyTorch),
            "bert_adam" (the official one: uncorrected, epsilon 1e-6) or
            "adamax" (MT-DNN's).
        schedule: learning-rate schedule.
        weight_decay: float. 0 switches it off.
        global_clipnorm: float. Largest norm of all gradients together; 0
            switches clipping off.

    Returns:
        A built optimizer, inside a `LossScaleOptimizer` if the global policy
        is mixed_float16.

    Raises:
        UserError: if `name` is unknown.
    """
    if name not in OPTIMIZERS:
        raise UserError(
            f"--optimizer must be one of {', '.join(OPTIMIZERS)}. "
            f"Received: {name!r}."
        )
    optimizer_class, options = OPTIMIZERS[name]
    optimizer = optimizer_class(
        schedule,
        weight_decay=weight_decay,
        global_clipnorm=global_clipnorm or None,
        **options,
    )
    _, excluded = split_decay(model)
    optimizer.exclude_from_weight_decay(var_list=list(excluded.values()))
    if keras.mixed_precision.global_policy().name == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


OPTIMIZERS = {
    "adamw": (AdamW, {"bias_correction": True, "epsilon": 1e-8}),
    "bert_adam": (AdamW, {"bias_correction": False, "epsilon": 1e-6}),
    "adamax": (AdamaxW, {}),
}
