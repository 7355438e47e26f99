//! Weigh open-weight against closed-weight models on your own workload.
