"""Boosted trees over columns of several parties: SecureBoost with Paillier.

Takes part: one label party, which may have columns too, and one or more feature parties. After alignment each
party divides its own columns into bins. In each round the label party computes the gradients of the loss,
turns them into integers, seals them and sends them; each feature party sums up, under encryption, those of
each bin of its columns in each node of a level; the label party opens the sums, finds the best split of each
node, and tells the owner of its column, which says which rows go left.

Who learns what:
- The label party learns, of each feature party, how many columns it has and into how many bins each is
  divided; in each node the sums of its own gradients over each bin, and how many rows are in it; which rows
  go left at each split that is chosen, and by which bins of which column, both by number. It learns no name,
  no threshold and no category. Sums over a bin of few rows, and the sums of many rounds, can tell which rows
  are in it.
- A feature party learns which of its rows are common, drawn in a round, and in which node; by which of its
  columns and bins a node is split, and how others' splits divide the rows. It is told no gradient, no gain
  and no leaf, and not who splits the other nodes. Rows that share a leaf tend to share a label, and rows that
  GOSS draws always are those whose labels are predicted badly.
- With `encryption=Plain()` a feature party learns gradients in the clear, and with them labels.

Semi-honest parties. That nothing is learnt from what is sealed rests on Paillier's assumption
(`protocols.hazmat.paillier`). Sums that do not fit what the label party knows are refused (`checks`); what a
feature party that makes them up can learn all the same is in docs/guides/boosting.md.

`label` and `feature` are the two roles of training, `grow` is one round of it at the label party, `nodes`
what both sides keep alike; `predict` has the roles of predicting.

Cheng, Fan, Jin, Liu, Chen, Papadopoulos and Yang 2021 (SecureBoost); Chen, Ma, Fan, Kang, Xu and Yang 2021
(SecureBoost+: packed gradients, sibling subtraction, joined ciphertexts, GOSS).
"""
