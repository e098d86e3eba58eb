//! The server: the edge in front, the router behind it, and their beginning and end.
//!
//! tiny_http routes and answers, but its parser trusts its peer: a Content-Length of 10^12 ends the
//! process, a stalled body holds a thread. So it listens on a private Unix socket, and the edge, built
//! on hyper, lets only whole and bounded requests through to it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{
    auth::Authenticator,
    cli::ServeArgs,
    config::{Settings, reload::Reloading},
    contract::error::{ActionError, Code},
    executor::context::{Context, stopped},
    http::{
        concurrency::Queue,
        connections::{Connections, descriptor_limit},
        dispatch::{Lasting, Service},
        endpoints::{operation::Followers, respond_async::Later},
        origin::Site,
        router,
        server::{Edge, Room},
        tls,
        upstream::PrivateFolder,
    },
    k8s::api::{client::Cluster, connect::connect},
    telemetry::metrics::Metrics,
};

/// How long requests under way may go on by themselves once we are told to stop, and how long after
/// that those that wait have to say what they know. Together less than the 30 s that Kubernetes
/// gives a pod by default.
const FINISH: Duration = Duration::from_secs(20);
const CONCLUDE: Duration = Duration::from_secs(5);

/// The stack of a thread, in bytes: what the main thread has, on which a single request is carried out. An
/// unoptimised build needs most of a thread's usual 2 MiB for one action, and what is not used costs
/// nothing.
const STACK: usize = 8 * 1024 * 1024;

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
    refuse_an_open_door(address, callers.is_required() || args.insecure_open)?;
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(STACK).build();
    let runtime = runtime.map_err(fault("the runtime"))?;
    let result = runtime.block_on(serve(address, callers, args.context.as_deref(), settings));
    // What has not ended by now is not waited for.
    runtime.shutdown_background();
    result
}

/// Where nobody is asked who they are, nobody else may be let in by accident.
fn refuse_an_open_door(address: SocketAddr, wanted: bool) -> Result<(), ActionError> {
    if address.ip().is_loopback() || wanted {
        return Ok(());
    }
    Err(ActionError::new(
        Code::Configuration,
        format!("{address} can be reached by others, and callers are not asked who they are"),
    )
    .with_hint(
        "set ACTION_EXECUTOR_KEYS, ACTION_EXECUTOR_TOKEN_AUDIENCE or ACTION_EXECUTOR_TLS_CLIENT_CA so \
         that they are, bind a loopback \
         address, or say --insecure-open where something else, such as an authenticating proxy, \
         decides who may call",
    ))
}

async fn serve(
    address: SocketAddr,
    callers: Authenticator,
    kube_context: Option<&str>,
    settings: &Settings,
) -> Result<(), ActionError> {
    let (stop, stopping) = watch::channel(false);
    let (conclude, concluding) = watch::channel(false);
    let policy = Reloading::new(settings.policy.clone())?;
    let tls = settings.tls.as_ref().map(tls::follow).transpose()?;
    let cluster = connect(kube_context).await?;
    let context = Context::new(cluster, policy, settings, concluding);
    let metrics = Arc::new(Metrics::new(context.cluster().map(Cluster::calls)));
    let context = context.map_observer(|observer| observer.with_metrics(metrics.clone()));
    let (offline, callers_are_asked) = (context.cluster().is_none(), callers.is_required());

    let folder = PrivateFolder::new().map_err(fault("the private folder"))?;
    let private = folder.listen().map_err(fault("the private socket"))?;
    let descriptors = descriptor_limit();
    let queue = Queue::new(settings.max_actions, descriptors, metrics.clone());
    let (later, followers) = (Later::default(), Followers::new(stopping.clone()));
    let (places, certificate) = (queue.clone(), tls.clone());
    let lasting = Lasting { later: later.clone(), followers, places, tls: certificate };
    let service = Service::new(context, Arc::new(callers)).lasting(lasting, stopping.clone());
    router::start(private, &service, &Handle::current()).map_err(fault("the router"))?;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        ActionError::new(Code::Configuration, format!("cannot listen on {address}: {error}"))
    })?;
    let address = listener.local_addr().map_err(fault("the listener"))?;
    let told = told_to_stop()?;
    let secure = tls.is_some();
    tracing::info!(%address, secure, offline, callers_are_asked, "listening");

    tokio::spawn(async move {
        told.await;
        tracing::info!("stopping: no new connections, requests under way are finished");
        let _ = stop.send(true);
    });
    let mut told_stop = stopping.clone();
    let grace = async move {
        stopped(&mut told_stop).await;
        sleep(FINISH).await;
        let _ = conclude.send(true);
        sleep(CONCLUDE).await;
    };
    let site = Site::new(address.ip(), settings.hosts.clone());
    let room = Room { connections: Connections::within(descriptors), queue, later };
    let edge = Edge::new(folder.upstream(), room, site, tls, metrics);
    edge.serve(listener, stopping, grace).await;
    tracing::info!("stopped");
    Ok(())
}

/// Returns at the first SIGTERM or SIGINT after this call.
fn told_to_stop() -> Result<impl Future<Output = ()>, ActionError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(fault("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault("signals"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn fault<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> ActionError {
    move |error| ActionError::new(Code::Internal, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_door_must_be_asked_for() {
        let door = |address: &str, open| {
            refuse_an_open_door(address.parse().expect("is an address"), open).is_ok()
        };
        assert!(door("127.0.0.1:8000", false));
        assert!(door("[::1]:8000", false));
        assert!(!door("0.0.0.0:8000", false));
        assert!(!door("[::]:8000", false));
        assert!(door("0.0.0.0:8000", true));
    }
}
