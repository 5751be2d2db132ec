"""The file that MLflow keeps of a policy's model, and runs to load it: code instead of a pickle."""

from mlflow.models import set_model

from rest_pg.serving.mlflow_model import ServedWriter

set_model(ServedWriter())
