"""Measures and plots for embeddings and clusters: arrays in, frozen dataclasses out.

Nothing here depends on how the arrays were made. FAISS, torch, openTSNE, UMAP and matplotlib are
imported by the functions that use them, when they use them.
"""

from .clustering import ClusteringScores, clustering_scores
from .contact_sheet import ContactSheetDisplay
from .duplicates import near_duplicates
from .knn import KNNClassifier, KNNScores, knn_accuracy, knn_scores
from .label_free import LabelFreeScores, label_free_scores, stability
from .linear_probe import LinearProbe, ProbeScores, linear_probe_scores
from .neighbors import nearest_neighbors
from .occupancy import Occupancy, cluster_occupancy
from .occupancy_display import OccupancyDisplay
from .projection import Projection, ProjectionDisplay, project
from .report import ReportSummary, write_report
from .review import ClusterReview, review_clusters

__all__ = [
    "ClusterReview",
    "ClusteringScores",
    "ContactSheetDisplay",
    "KNNClassifier",
    "KNNScores",
    "LabelFreeScores",
    "LinearProbe",
    "Occupancy",
    "OccupancyDisplay",
    "ProbeScores",
    "Projection",
    "ProjectionDisplay",
    "ReportSummary",
    "cluster_occupancy",
    "clustering_scores",
    "knn_accuracy",
    "knn_scores",
    "label_free_scores",
    "linear_probe_scores",
    "near_duplicates",
    "nearest_neighbors",
    "project",
    "review_clusters",
    "stability",
    "write_report",
]
