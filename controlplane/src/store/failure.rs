//! The failure of an engine: entered once, seen by its commit thread and by the whole process.

use std::sync::Arc;

use tokio::sync::watch;

use super::StoreError;

/// How the engine failed, once it has.
#[derive(Clone, Debug)]
pub(super) struct Failure(Arc<watch::Sender<Option<StoreError>>>);

impl Failure {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// What it was.
    pub(super) fn get(&self) -> Option<StoreError> {
        self.0.borrow().clone()
    }

    /// Enters the first failure; later ones follow from it.
    pub(super) fn enter(&self, error: &StoreError) {
        self.0.send_if_modified(|failure| {
            let is_first = failure.is_none();
            if is_first {
                tracing::error!(%error, "the store has failed; no more writes are taken");
                *failure = Some(error.clone());
            }
            is_first
        });
    }

    /// Waits for it.
    pub(super) async fn wait(&self) -> StoreError {
        let mut failure = self.0.subscribe();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(error)) => error,
            // The sender lives as long as this.
            Ok(None) | Err(_) => StoreError::Closed,
        }
    }

    /// Passes a result on, and enters the engine's errors.
    pub(super) fn watched<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error @ StoreError::Engine(_)) = &result {
            self.enter(error);
        }
        result
    }
}

/// Makes a panic of the commit thread a failure too.
pub(super) struct PanicIsFailure(pub(super) Failure);

impl Drop for PanicIsFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.enter(&StoreError::Engine("its commit thread has panicked".into()));
        }
    }
}
