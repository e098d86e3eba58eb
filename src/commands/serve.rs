//! `serve`: from settings and arguments to a running server, and its shutdown.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{
    auth::Authenticator,
    cli::{self, ServeArgs},
    config::Settings,
    contract::error::{ActionError, Code},
    executor::{
        context::{Context, stopped},
        reports::FLUSH_TIMEOUT,
    },
    http::{
        concurrency::Limiter,
        connections::{Bounds, Connections, descriptor_limit},
        dispatch::{ServerState, Service},
        endpoints::{respond_async::BackgroundTasks, sse::Watchers},
        origin::HostPolicy,
        server::{Engine, Limits, Server},
        tiny::TinyHttp,
        tls,
    },
    mcp::calls::Waits,
    telemetry::metrics::Metrics,
};

/// How long requests in progress may continue after the start of the shutdown, and how long after that waits have to
/// answer what they know. Together with [`FLUSH_TIMEOUT`] less than the 30 s that Kubernetes gives a pod by default.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);
const CONCLUDE_TIMEOUT: Duration = Duration::from_secs(5);

/// The stack of a thread, in bytes: that of the main thread, on which a single request is carried out. An
/// unoptimised build needs most of a thread's usual 2 MiB for one action, and unused stack costs nothing.
const STACK_BYTES: usize = 8 * 1024 * 1024;

/// The size of a connection's buffers in the kernel, which uses as much again for its bookkeeping.
const SOCKET_BUFFER_BYTES: u32 = 16 * 1024;

/// How many connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Serves until SIGTERM or SIGINT; returns the exit status.
#[must_use]
pub fn run(args: ServeArgs, settings: &Settings) -> u8 {
    match try_run(args, settings) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(code = %error.code, hint = error.hint, "{}", error.detail);
            error.code.exit_status()
        }
    }
}

fn try_run(args: ServeArgs, settings: &Settings) -> Result<(), ActionError> {
    let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), settings.port);
    let address = args.bind.unwrap_or(default);
    let callers = Authenticator::from_settings(settings)?;
    check_exposure(address, callers.is_required() || args.insecure_open)?;
    check_impersonation(settings, callers.is_required())?;
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(STACK_BYTES).build();
    let runtime = runtime.map_err(internal("the runtime"))?;
    let result = runtime.block_on(serve(address, callers, &args, settings));
    // What has not ended by now is not waited for.
    runtime.shutdown_background();
    result
}

/// Without authentication, other hosts must not reach the server by accident.
fn check_exposure(address: SocketAddr, is_allowed: bool) -> Result<(), ActionError> {
    if address.ip().is_loopback() || is_allowed {
        return Ok(());
    }
    Err(ActionError::new(
        Code::Configuration,
        format!(
            "refusing to listen on {address}: it is reachable from other hosts and authentication is off"
        ),
    )
    .with_hint(
        "set ACTION_EXECUTOR_KEYS, ACTION_EXECUTOR_TOKEN_AUDIENCE or ACTION_EXECUTOR_TLS_CLIENT_CA, bind a \
         loopback address, or pass --insecure-open where something else, such as an authenticating proxy, \
         decides who may call",
    ))
}

/// Without authentication there is nobody to impersonate.
fn check_impersonation(settings: &Settings, authenticates: bool) -> Result<(), ActionError> {
    if authenticates || settings.impersonation.is_none() {
        return Ok(());
    }
    let detail = "ACTION_EXECUTOR_IMPERSONATE=callers needs callers, and authentication is off";
    Err(ActionError::new(Code::Configuration, detail).with_hint(
        "set ACTION_EXECUTOR_TOKEN_AUDIENCE, ACTION_EXECUTOR_TLS_CLIENT_CA or ACTION_EXECUTOR_KEYS, or unset \
         ACTION_EXECUTOR_IMPERSONATE",
    ))
}

async fn serve(
    address: SocketAddr,
    callers: Authenticator,
    args: &ServeArgs,
    settings: &Settings,
) -> Result<(), ActionError> {
    let (stop, stopping) = watch::channel(false);
    let (conclude, concluding) = watch::channel(false);
    let tls = settings.tls.as_ref().map(tls::follow).transpose()?;
    let context = Context::connect(args.context.as_deref(), settings, concluding).await?;
    let reports = context.reports().clone();
    let metrics = Metrics::new(context.calls());
    let metrics = Arc::new(match reports.deliveries() {
        Some(deliveries) => metrics.with_deliveries(deliveries),
        None => metrics,
    });
    let context = context.map_observer(|observer| observer.with_metrics(metrics.clone()));
    let (offline, authentication) = (context.calls().is_none(), callers.is_required());

    let bounds = Bounds::within(descriptor_limit(), settings.peer_share);
    let limits = Limits {
        connections: Connections::new(bounds),
        concurrency: Limiter::new(
            settings.max_actions,
            bounds.connections,
            &context.names().unwrap_or_default().all,
            metrics.clone(),
        )?,
        background: BackgroundTasks::default(),
    };
    let state = ServerState {
        background: limits.background.clone(),
        waits: Waits::default(),
        watchers: Watchers::new(stopping.clone()),
        tls: tls.clone(),
        actions: Arc::default(),
    };
    let service = Service::new(context, Arc::new(callers), settings);
    let service = service.in_server(state, stopping.clone());
    let engine = match args.engine {
        cli::Engine::Hyper => Engine::Hyper,
        cli::Engine::TinyHttp => {
            Engine::TinyHttp(Box::new(TinyHttp::start(&service, descriptor_limit())?))
        }
    };
    let listener = listen(address).map_err(|error| {
        ActionError::new(Code::Configuration, format!("cannot listen on {address}: {error}"))
    })?;
    let address = listener.local_addr().map_err(internal("the listener"))?;
    let signalled = shutdown_signal()?;
    let secure = tls.is_some();
    tracing::info!(%address, secure, offline, authentication, "listening");

    tokio::spawn(async move {
        signalled.await;
        tracing::info!("shutting down: no new connections, requests in progress are finished");
        let _ = stop.send(true);
    });
    let mut begun = stopping.clone();
    let grace = async move {
        stopped(&mut begun).await;
        sleep(FINISH_TIMEOUT).await;
        let _ = conclude.send(true);
        sleep(CONCLUDE_TIMEOUT).await;
    };
    let hosts = HostPolicy::new(address.ip(), settings.hosts.clone());
    let server = Server::new(service, engine, limits, hosts, tls, metrics);
    server.serve(listener, stopping, grace).await;
    reports.flush(FLUSH_TIMEOUT).await;
    tracing::info!("stopped");
    Ok(())
}

/// A listener whose connections have small buffers in the kernel, which counts them as the container's memory and
/// would let a client that sends or reads nothing fill megabytes.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit them.
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Returns at the first SIGTERM or SIGINT after this call.
fn shutdown_signal() -> Result<impl Future<Output = ()>, ActionError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(internal("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(internal("signals"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn internal<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> ActionError {
    move |error| ActionError::new(Code::Internal, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exposed_server_without_authentication_must_be_allowed() {
        let allowed = |address: &str, open| {
            check_exposure(address.parse().expect("is an address"), open).is_ok()
        };
        assert!(allowed("127.0.0.1:8000", false));
        assert!(allowed("[::1]:8000", false));
        assert!(!allowed("0.0.0.0:8000", false));
        assert!(!allowed("[::]:8000", false));
        assert!(allowed("0.0.0.0:8000", true));
    }
}
