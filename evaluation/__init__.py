"""Scores and plots of embeddings and clusters: functions of arrays that return frozen dataclasses.

The package works with arrays from any method. FAISS, torch, openTSNE, UMAP and matplotlib are
imported only by the functions that need them, when they are called.
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
