"""Labels of texts and tokens, and scores of documents for a query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastllm import _core
from fastllm.errors import CheckpointError, NumericError, OptionError, TokenizerError, about
from fastllm.heads import activate
from fastllm.heads.dense import apply
from fastllm.llm.arguments import several, token_ids
from fastllm.llm.texts import Texts
from fastllm.tokenizer import Pair, cut_pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.chat import ChatTemplate
    from fastllm.heads import Classifier
    from fastllm.weights.store import Stored

# The question that Qwen3-Reranker (Zhang et al., 2025) was trained to answer, from its model card.
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_FILLERS = ("0", "1 2 3 4")  # placeholder texts, to find what a template writes after a document


class Labels(Texts):
    """The part of an LLM that labels and scores texts."""

    def _set_head(self, stored: Stored) -> None:
        """Takes the classifier of a model. Raises CheckpointError where its layers do not fit it."""
        self.classifier, self.ranking = stored.classifier, stored.ranking
        self._layers = stored.dense.get("classifier", ())
        if self.classifier is None:
            return
        shapes = [layer.matrix.shape for layer in self._layers]
        if not shapes or shapes[0][1] != self.config.dim or shapes[-1][0] != len(self.classifier.labels):
            raise CheckpointError(
                f"{self.path} has a classifier of {', '.join(f'{d} x {n}' for d, n in shapes) or 'no layers'}, "
                f"which does not fit a width of {self.config.dim} and {len(self.classifier.labels)} labels"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classifier's labels, in the order of its scores; none of a model without one."""
        return () if self.classifier is None else self.classifier.labels

    @property
    def max_length(self) -> int | None:
        """The number of tokens to which a classifier's texts and pairs are cut; None where the files do not say."""
        longest = self.ranking.max_length
        return None if longest is None else min(longest, self.context)

    # ---- classifiers

    @_core.standard_floats
    def classify(self, texts: Iterable[str | tuple[str, str] | Sequence[int]]) -> NDArray[np.float32]:
        """The scores (logits) of each text for each label: float32 [n, labels].

        A text is a string, a pair of strings that is read as one text, or token ids. Strings get what the tokenizer
        puts around them and are cut to max_length (of a pair, the longer one first); ids are taken as they are.
        `labels` names the columns; classifier.probabilities(scores) makes probabilities of them.

        Raises OptionError (the model has no such head), ContextError, TokenizerError, NumericError.
        """
        classifier = self._head_for("classify")
        read = []
        for i, text in enumerate(several("classify", "texts", texts)):
            with about(i):
                read.append(self._read(text, f"text {i}"))
        return self._scores(classifier, read)

    @_core.standard_floats
    def token_classify(self, text: str | Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
        """The T token ids of a text, and the scores of each token for each label: float32 [T, labels].

        A string gets what the tokenizer puts around a text, so that some ids may be special tokens; token ids are taken
        as they are. Raises OptionError (the model has no such head), ContextError, TokenizerError,
        NumericError.
        """
        import numpy

        self._head_for("token_classify")
        ids, _ = self._read(text, "the text")
        scores = apply(self._layers, next(self._streams([ids], None, {})), isa=self._isa)
        if not numpy.isfinite(scores).all():
            raise NumericError(f"{self.path} computes numbers that are not finite: the scores of the tokens")
        return ids, scores

    def _head_for(self, what: str) -> Classifier:
        if self.classifier is not None and what in self._can():
            return self.classifier
        raise OptionError(f"{self.path} has no head for {what}: what it can do is {', '.join(self._can())}")

    def _check_head(self) -> None:
        if not self.config.head:
            can = (
                f"what it can do is {', '.join(self._can())}"
                if self.classifier
                else "only hidden states and embeddings"
            )
            raise OptionError(f"{self.path} has no head, so there are no logits: {can}")

    def _can(self) -> list[str]:
        """The names of the methods that the model has a head for."""
        if self.classifier is None:
            return [*(["generate", "logits"] if self.config.head and self.config.causal else []), "embed"]
        if self.classifier.pooling == "each":
            return ["token_classify", "embed"]
        return ["classify", *(["rerank"] if len(self.labels) == 1 else []), "embed"]

    def _scores(self, classifier: Classifier, texts: Sequence[tuple[list[int], int]]) -> NDArray[np.float32]:
        """The scores of texts, [n, labels]. texts: the ids of each, and the position where its second text begins."""
        import numpy

        seconds = {i: second for i, (ids, second) in enumerate(texts) if second < len(ids)}
        rows = numpy.empty((len(texts), self.config.dim), numpy.float32)
        for i, stream in enumerate(self._streams([ids for ids, _ in texts], None, seconds)):
            last = [at for at, token in enumerate(texts[i][0]) if token != classifier.pad]
            rows[i] = stream[0 if classifier.pooling == "cls" or not last else last[-1]]
        scores = apply(self._layers, rows, isa=self._isa)
        for i in range(len(texts)):
            if not numpy.isfinite(scores[i]).all():
                with about(i):
                    raise NumericError(f"{self.path} computes numbers that are not finite: the scores of text {i}")
        return scores

    # ---- texts

    def _read(self, text: str | tuple[str, str] | Sequence[int], what: str) -> tuple[list[int], int]:
        """The ids of a text, checked, and the position at which a second text with its own token type begins."""
        ids: Sequence[int]
        second = None
        if isinstance(text, str):
            ids = self._cut(text)
        elif isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
            ids, second = self._cut_pair(*text)
        else:
            ids = token_ids(text, what)
        ids = self._ids(ids, what)
        return ids, second if second is not None and self.config.second_segment else len(ids)

    def _cut(self, text: str) -> list[int]:
        """The ids of a text with prefix and suffix, cut to max_length."""
        prefix, suffix = self._frame.prefix, self._frame.suffix
        room, left = self._room(len(prefix) + len(suffix)), self.ranking.truncate_left
        ids, _ = cut_pair(self._frame.encode(text), [], room, left=left)
        return [*prefix, *ids, *suffix]

    def _cut_pair(self, first: str, second: str) -> tuple[list[int], int | None]:
        """The ids of a pair of texts, cut to max_length, and the position at which the second token type begins."""
        pair, encode = self._around_pair(), self._frame.encode
        around = len(pair.prefix) + len(pair.between) + len(pair.suffix)
        a, b = cut_pair(encode(first), encode(second), self._room(around), left=self.ranking.truncate_left)
        ids = [*pair.prefix, *a, *pair.between, *b, *pair.suffix]
        return ids, None if pair.second is None else len(pair.prefix) + len(a) + pair.second

    def _room(self, around: int) -> int | None:
        """The number of tokens that texts may have within max_length, beside `around` others."""
        longest = self.max_length
        if longest is not None and longest < around:
            raise OptionError(f"{self.path} cuts texts to {longest} tokens, but puts {around} around them")
        return None if longest is None else longest - around

    def _around_pair(self) -> Pair:
        """What goes around and between two texts: as the tokenizer says, else each gets a text's prefix and suffix."""
        if self.tokenizer.pair is not None:
            return self.tokenizer.pair
        prefix, suffix = self._frame.prefix, self._frame.suffix
        return Pair(prefix, (*suffix, *prefix), suffix)

    # ---- documents for a query

    @_core.standard_floats
    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        instruction: str | None = None,
        template: str | None = None,
    ) -> list[tuple[int, float]]:
        """How well each document answers the query: (index of the document, score), the best first.

        The model is a classifier with one label, or a judge: a language model that answers "yes" or "no" (or two words
        that its files name), whose score is the difference of their logits. Scores, activation (by default the
        sigmoid), prompt and max_length are those of sentence-transformers' CrossEncoder. A judge reads its chat
        template filled with messages of the roles "query" and "document"; where the template knows no such roles, the
        question of Qwen3-Reranker as a user's message.

        instruction: what the query is for, in place of the files' prompt. template: a chat template with these roles,
        in place of the model's own.

        Raises OptionError (the model has no such head), ContextError, TokenizerError, NumericError.
        """
        import numpy

        documents = several("rerank", "documents", documents)
        judge = self.classifier is None and self.config.head and self.config.causal
        classifier = None if judge else self._head_for("rerank")
        if self.ranking.refused:
            raise CheckpointError(self.ranking.refused)
        prompt = self.ranking.prompt if instruction is None else instruction
        asking = self._asking(template)
        pairs = [self._judged(asking, prompt, query, document, i) for i, document in enumerate(documents)]
        if not pairs:
            return []
        if classifier is not None:
            scores = self._scores(classifier, pairs)
        else:
            words = self._words()
            scores = numpy.array([self._judge(ids, *words) for ids, _ in pairs], numpy.float32).reshape(-1, 1)
        scored = [float(score) for score in activate(self.ranking.activation, scores)[:, 0]]
        return sorted(enumerate(scored), key=lambda pair: -pair[1])

    def _asking(self, template: str | None) -> _Asking | None:
        """How a judge is asked through its chat template; None for a model that reads the pair as it is.

        Raises OptionError for a template that leaves out query or document.
        """
        if template is None and (self.ranking.messages is False or self.tokenizer.chat_template is None):
            if self.classifier is None and self.ranking.words is None:
                raise OptionError(f"{self.path} has no chat template to ask with: it may be no reranker")
            return None
        from fastllm.chat import ChatTemplate

        chat = ChatTemplate(self.tokenizer, template)
        asking = _Asking(chat, {"add_generation_prompt": False, **self.ranking.variables})
        why = asking.fault()
        if why is None:
            return asking
        if template is None and self.classifier is None and self.ranking.words is None:
            # enable_thinking=False makes Qwen3's template write an empty thought, so that the next token is the answer.
            # Other templates ignore it.
            asking = _Asking(chat, {"add_generation_prompt": True, "enable_thinking": False}, roles=False)
            why = asking.fault()
            if why is None:
                return asking
        raise OptionError(
            f"the chat template of {self.path} {why}: a template of your own (template, --template) must write them"
        )

    def _judged(self, asking: _Asking | None, prompt: str, query: str, document: str, i: int) -> tuple[list[int], int]:
        """The ids of a query and a document."""
        what = f"document {i}"
        if not isinstance(query, str) or not isinstance(document, str):
            raise OptionError(f"{what if isinstance(query, str) else 'the query'} is not a text")
        if asking is None:
            return self._read((prompt + query, document), what)
        ids = asking.encode(prompt, query, document)
        if self.max_length is not None and len(ids) > self.max_length:
            # Cut the document, not what the template writes after it: that is what makes the model answer.
            ends = [asking.encode(prompt, text, text) for text in _FILLERS]
            keep = min(_common_end(*ends), self.max_length)
            ids = [*ids[: self.max_length - keep], *ids[len(ids) - keep :]]
        return self._read(ids, what)

    def _judge(self, ids: list[int], true: int, false: int | None) -> float:
        """The judge's score after a text: the logit of the word for true, minus that of the word for false."""
        logits = self._engine.after(ids)
        return float(logits[true] if false is None else logits[true] - logits[false])

    def _words(self) -> tuple[int, int | None]:
        """The tokens of a judge's answers: for true, and for false if there is one."""
        words = self.ranking.words or tuple(self.tokenizer.token_id(word) for word in ("yes", "no"))
        for word in words:
            if word is not None and word >= self.config.vocab_size:
                raise OptionError(f"{self.path} answers with the token {word}, which its vocabulary has not")
        true, false = words
        if true is None or (self.ranking.words is None and false is None):
            raise OptionError(f"{self.path} has no tokens yes and no to answer with: it may be no reranker")
        return true, false


class _Asking(NamedTuple):
    """How a judge is asked. roles: True where the template takes messages of the roles query and document; False puts
    both into a user's message. variables: further inputs of the template."""

    chat: ChatTemplate
    variables: dict[str, Any]
    roles: bool = True

    def messages(self, prompt: str, query: str, document: str) -> list[dict[str, str]]:
        if self.roles:
            said = [("system", prompt)] if prompt else []
            said += [("query", query), ("document", document)]
        else:
            said = [("system", _JUDGE)]
            said += [("user", f"<Instruct>: {prompt or _INSTRUCTION}\n<Query>: {query}\n<Document>: {document}")]
        return [{"role": role, "content": text} for role, text in said]

    def encode(self, prompt: str, query: str, document: str) -> list[int]:
        return self.chat.encode(self.messages(prompt, query, document), **self.variables)

    def fault(self) -> str | None:
        """What is wrong with the template, if anything: it must write both texts."""
        try:
            pairs = (("a", "b"), ("c", "b"), ("a", "c"))
            base, *others = (self.chat.render(self.messages("", *pair), **self.variables) for pair in pairs)
        except (TokenizerError, OptionError) as error:
            return f"takes no messages of the roles query and document ({error})"
        return "leaves out messages of the roles query and document" if base in others else None


def _common_end(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their ends; 0 where one is the end of the other."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return 0 if count == min(len(a), len(b)) else count
