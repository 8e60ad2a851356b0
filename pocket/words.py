"""The pocket model's tokenizer: LLaMA's kind of byte-fallback BPE, in which each word that it is taught is a token."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from idefics_jax.evaluation.templates import OWN_TEMPLATES
from idefics_jax.processing.prompts import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN
from idefics_jax.processing.tokenizer import IdeficsTokenizer

CONTROL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = [FAKE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]
MOST_PIECES = 4096
#: Prompts of the benchmarks as the model is taught to converse, for `idefics-jax eval`.
EVALUATION_PROMPTS = {
    name: {
        "prefix": "{bos}",
        "example": f"User:<image>{question}{END_OF_UTTERANCE}\nAssistant: {{answer}}{END_OF_UTTERANCE}\n",
        "stop_words": [END_OF_UTTERANCE],
    }
    for name, question in {
        "vqa": "{question}",
        "captions": "Describe the picture.",
        "photo": "What is in this picture?",
    }.items()
}


def make_tokenizer(texts: Iterable[str]) -> IdeficsTokenizer:
    """Learns the pieces from texts without special tokens; ids as LLaMA has them: control, bytes, pieces, added."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = spaces
    # Words end where the next begins, so that "fox." is no piece; a line's first word has no space before it.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    letters = ["▁", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(vocab_size=MOST_PIECES, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = [*CONTROL, *BYTES, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)]
    merges = [tuple(merge) for merge in learnt["merges"]]
    model = models.BPE(
        {piece: id for id, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([*CONTROL, *ADDED])
    return IdeficsTokenizer(tokenizer, {OWN_TEMPLATES: EVALUATION_PROMPTS})
