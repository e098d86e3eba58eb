//! HTTP.

pub mod assets;
pub mod body;
pub mod concurrency;
pub mod connections;
pub mod dispatch;
pub mod endpoints;
pub mod headers;
pub mod message;
pub mod openapi;
pub mod origin;
pub mod query;
pub mod router;
pub mod routes;
pub mod server;
pub mod tls;
pub mod upstream;
