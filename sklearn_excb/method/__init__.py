"""The method of ExCB: the equations of the paper [1]_ as functions of tensors.

=============  =================================================================================
module         contents
=============  =================================================================================
``balancing``  the balancing operator (Eq. 10), and the measured cluster sizes s
``loss``       the loss over pairs of views (Algorithm 1 of the supplementary)
``attention``  softmax over all centroids, in blocks; ``loss`` is built on it
``schedules``  cosine schedules of the learning rate, the weight decay and the teacher's momentum
``kmeans``     spherical k-means, from which the centroids start (as in the authors' code)
``baselines``  centering (DINO) and Sinkhorn-Knopp (SwAV) in place of balancing, for comparison
``entropy``    entropies of teacher and student, to monitor a fit; not in the paper
``ward``       hierarchical merging of clusters; not in the paper
=============  =================================================================================

======================  ======================================================================
symbol                  meaning
======================  ======================================================================
K, D                    number of clusters; dimension of the projections, 256
B                       images in a batch (N in Algorithm 1)
G, L, V = G + L         global views, local views and all views of an image; global ones first
f, h, g                 backbone, projector, predictor
C                       centroids (the layer q), (K, D); normalised to unit rows before use
z, z^B                  cosine similarities of rows to clusters, before and after balancing
s                       measured cluster sizes, (K,), with sum 1
r = s K                 relative sizes: 1 is balanced, 0 is empty
m, m_s                  momentum of the teacher, and of the measured sizes
tau_t, tau_s            temperatures of the teacher and of the student
row                     one view of one image
======================  ======================================================================

References
----------
.. [1] I. Maniadis Metaxas, G. Tzimiropoulos, I. Patras, "Efficient Unsupervised Visual
   Representation Learning with Explicit Cluster Balancing", ECCV 2024, arXiv:2407.11168.
"""
