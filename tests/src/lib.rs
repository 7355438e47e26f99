//! End-to-end tests over the built program and plugins. The tests are in `tests/`.
