"""Measures and plots for embeddings and clusters: arrays in, frozen dataclasses out.

Nothing here depends on how the arrays were made. FAISS, torch, openTSNE, UMAP and matplotlib are
imported by the functions that use them, when they use them.
"""

from .clusters.contact_sheet import ContactSheetDisplay
from .clusters.duplicates import near_duplicates
from .clusters.label_free import LabelFreeScores, label_free_scores, stability
from .clusters.occupancy import Occupancy, cluster_occupancy
from .clusters.occupancy_display import OccupancyDisplay
from .clusters.review import ClusterReview, review_clusters
from .clusters.scores import ClusteringScores, clustering_scores
from .maps.projection import Projection, ProjectionDisplay, project
from .neighbors.knn import KNNClassifier, KNNScores, knn_accuracy, knn_scores
from .neighbors.search import nearest_neighbors
from .probes.linear_probe import LinearProbe, ProbeScores, linear_probe_scores
from .report.report import ReportSummary, write_report

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
