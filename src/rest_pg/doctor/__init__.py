"""What ``kedro doctor`` looks at before a run, and what it estimates."""
