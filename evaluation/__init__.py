"""Measures and plots for embeddings and clusters: arrays in, frozen dataclasses out.

Nothing here depends on how the arrays were made. FAISS, torch, openTSNE, UMAP and matplotlib are
imported by the functions that use them, when they use them.
"""

from evaluation.clustering import ClusteringScores, clustering_scores
from evaluation.contact_sheet import ContactSheetDisplay
from evaluation.duplicates import near_duplicates
from evaluation.knn import KNNClassifier, KNNScores, knn_accuracy, knn_scores
from evaluation.label_free import LabelFreeScores, label_free_scores, stability
from evaluation.linear_probe import LinearProbe, ProbeScores, linear_probe_scores
from evaluation.neighbors import nearest_neighbors
from evaluation.occupancy import Occupancy, cluster_occupancy
from evaluation.occupancy_display import OccupancyDisplay
from evaluation.projection import Projection, ProjectionDisplay, project
from evaluation.report import ReportSummary, write_report
from evaluation.review import ClusterReview, review_clusters

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
