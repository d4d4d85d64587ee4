"""Golden products after labels came or went: what the network in torch computed stays, the rest is worked out plainly.

Knows no file but the open bundle's. Scores of labels that torch never met come from the reference arithmetic in
``mufin.scoring`` on the label's record, label by label, and from a comparison with every label; those of a learned
combination from evidence compared by numpy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model_export.golden_candidates import with_candidates
from mufin.bundle import Bundle
from mufin.combination import candidate_features
from mufin.evidence import ProductEvidence
from mufin.golden import Golden
from mufin.inputs import FloatArray, Int64Array
from mufin.label_store import BundleLabelStore
from mufin.scoring import Modality, as_trained, classifier_scores, fuse

_LABELS_AT_ONCE = 8192


def updated_golden(golden: Golden, bundle: Bundle, kept: Int64Array | None) -> Golden:
    """``golden`` of the bundle before, for the open bundle after.

    ``kept``: labels of the bundle before, in the numbering of the bundle after; None where numbers stayed.
    """
    before = [_known(golden, row, kept) for row in range(len(golden.titles))]
    labels, cosines = _nearest(golden.embeddings, bundle)
    evidence = _evidence(golden, bundle)
    if evidence is not None:
        labels, cosines = with_candidates(
            labels, cosines, evidence, golden.embeddings, BundleLabelStore(bundle).embeddings, bundle.removed
        )
    classifier = np.zeros(labels.shape, dtype=np.float32)
    for row, known in enumerate(before):
        for place, label in enumerate(labels[row].tolist()):
            if label in known:
                cosines[row, place], classifier[row, place] = known[label]
            elif label >= 0:
                classifier[row, place] = _score(golden, row, label, bundle)
    order = np.lexsort((labels, -cosines, labels < 0))
    labels, cosines = np.take_along_axis(labels, order, 1), np.take_along_axis(cosines, order, 1)
    classifier = np.take_along_axis(classifier, order, 1)
    fused = _fused(golden, labels, cosines, classifier, evidence, bundle)
    return replace(golden, shortlist=(labels, cosines), classifier=classifier, fused=fused)


def _fused(
    golden: Golden, labels: Int64Array, cosines: FloatArray, classifier: FloatArray,
    evidence: list[ProductEvidence] | None, bundle: Bundle,
) -> FloatArray:  # fmt: skip
    """(G, K) final scores of shortlists (G, K), padded with -1."""
    spec, combination = bundle.manifest.score_spec, bundle.combination
    fused = fuse(spec, classifier, cosines)
    for row in range(len(fused)):
        count = int((labels[row] >= 0).sum())
        own = labels[row, :count]
        if evidence is not None and combination is not None and bundle.evidence is not None:
            features = candidate_features(
                own, cosines[row, :count], classifier[row, :count], evidence[row], bundle.evidence.frequency,
                bool(golden.has_title[row]), _pictured(golden, row),
            )  # fmt: skip
            fused[row, :count] = combination(features)
        fused[row, :count] = as_trained(
            spec, _modality(golden, row), fused[row, :count], cosines[row, :count], bundle.records.untrained(own),
            bundle.manifest.sizes.encoders.same_item,
        )  # fmt: skip
    return fused


def _evidence(golden: Golden, bundle: Bundle) -> list[ProductEvidence] | None:
    """What the bundle's combination knows of each product beside the network; None where it has none."""
    if bundle.evidence is None:
        return None
    evidence, dimension = bundle.evidence.with_kernel("numpy"), golden.embeddings.shape[1]
    named = list(zip(golden.titles, golden.has_title.tolist(), golden.title_vectors, strict=True))
    words = [evidence.words.row(title) if has_title else None for title, has_title, _ in named]
    return evidence.of(
        golden.embeddings, words, [own[dimension:] if has_title else None for _, has_title, own in named]
    )


def _pictured(golden: Golden, row: int) -> bool:
    return bool(golden.image_offsets[row + 1] > golden.image_offsets[row])


def _modality(golden: Golden, row: int) -> Modality:
    pictured = _pictured(golden, row)
    return "both" if golden.has_title[row] and pictured else "images" if pictured else "title"


def _known(golden: Golden, row: int, kept: Int64Array | None) -> dict[int, tuple[float, float]]:
    """Label after -> cosine and classifier score as torch computed them."""
    labels, cosines = golden.shortlist[0][row], golden.shortlist[1][row]
    if kept is None:
        after = labels
    else:
        place = np.minimum(np.searchsorted(kept, labels), len(kept) - 1)
        after = np.where((kept[place] == labels) & (labels >= 0), place, -1)
    found = zip(after.tolist(), cosines.tolist(), golden.classifier[row].tolist(), strict=True)
    return {label: (cosine, score) for label, cosine, score in found if label >= 0}


def _nearest(queries: FloatArray, bundle: Bundle) -> tuple[Int64Array, FloatArray]:
    """(G, D) -> the K nearest labels by comparison with every one, ties to the smaller, and their cosines."""
    sizes, store = bundle.manifest.sizes, BundleLabelStore(bundle)
    most = min(bundle.manifest.score_spec.shortlist_size, sizes.labels - sizes.removed)
    labels, scores = np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0), dtype=np.float32)
    for start in range(0, sizes.labels, _LABELS_AT_ONCE):
        block = np.arange(start, min(start + _LABELS_AT_ONCE, sizes.labels))
        block = np.setdiff1d(block, bundle.removed, assume_unique=True)
        labels = np.concatenate([labels, np.broadcast_to(block, (len(queries), len(block)))], axis=1)
        scores = np.concatenate([scores, queries @ store.embeddings(block).T], axis=1)
        order = np.lexsort((labels, -scores))[:, :most]
        labels, scores = np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1)
    return labels, scores


def _score(golden: Golden, row: int, label: int, bundle: Bundle) -> float:
    record = bundle.records.gather(np.asarray([label], dtype=np.int64))
    if bundle.cross_attention is None:
        return float(record.classifiers[0] @ golden.embeddings[row])
    slots = golden.slots[row][golden.slot_mask[row]]
    return float(classifier_scores(bundle.cross_attention, slots, record)[0])
