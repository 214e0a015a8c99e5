//! What Skein's processes share to be seen: the metric catalogue, the admin endpoint, logging.
