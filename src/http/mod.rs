//! HTTP: what a connection may do, what a request says, and what answers it.

pub mod activity;
mod addressee;
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
pub mod routes;
pub mod server;
pub mod stream;
pub mod tiny;
pub mod tls;
