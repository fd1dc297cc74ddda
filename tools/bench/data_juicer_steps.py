"""Our cleaning steps as one Data-Juicer operator, for data_juicer_ray.yaml (see scaling.md)."""

from data_juicer.ops.base_op import OPERATORS, Mapper

from aurora_lib.data import drops, duplicates, edits


@OPERATORS.register_module("aurora_steps_mapper")
class AuroraStepsMapper(Mapper):
    """Edit `messages` and name the `step` and `reason` that drop it ("" where none does); adds `text` and
    `plain`."""

    def process_single(self, sample: dict) -> dict:
        messages, _ = edits.edit([dict(message) for message in sample["messages"]])
        found = next(((step.__name__, why) for step in drops.DROPS if (why := step(messages))), ("", ""))
        said = "\0".join(f"{message['role']}\0{message['content'].strip()}" for message in messages)
        names = dict(zip(("step", "reason"), found, strict=True))
        return sample | names | {"messages": messages, "text": said, "plain": duplicates.plain(messages)}
