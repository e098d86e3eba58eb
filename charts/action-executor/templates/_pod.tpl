{{/*
The pod's annotations. A changed policy or key changes a checksum, so the Deployment starts new pods.
*/}}
{{- define "action-executor.podAnnotations" -}}
checksum/policy: {{ include "action-executor.policy" . | sha256sum }}
{{- if .Values.authentication.keys.entries }}
checksum/keys: {{ include "action-executor.keys" . | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
A probe. The container's port and scheme are its defaults.
*/}}
{{- define "action-executor.probe" -}}
{{- $probe := deepCopy .probe }}
{{- range $kind := list "httpGet" "tcpSocket" }}
{{- with get $probe $kind }}
{{- if not (hasKey . "port") }}
{{- $_ := set . "port" $.port }}
{{- end }}
{{- if and $.secure (eq $kind "httpGet") (not (hasKey . "scheme")) }}
{{- $_ := set . "scheme" "HTTPS" }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{/*
The pod, for a Deployment and for Knative. By default Knative rejects fields for nodes and the kubelet, so a
Knative Service has only those of them that the values set; Knative reports the feature flags that they need.
*/}}
{{- define "action-executor.podSpec" -}}
{{- $knative := .Values.knative.enabled }}
{{- $settings := .Values.settings }}
{{- $keys := include "action-executor.keysSecret" . }}
serviceAccountName: {{ include "action-executor.serviceAccountName" . }}
# The token is mounted below, into the server's container only.
automountServiceAccountToken: false
# A Service named action-executor would set variables with the names of settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if not $knative }}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := deepCopy . }}
  {{- if not (hasKey $constraint "labelSelector") }}
  {{- $_ := set $constraint "labelSelector" (dict "matchLabels" (include "action-executor.selectorLabels" $ | fromYaml)) }}
  {{- end }}
  {{- toYaml (list $constraint) | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: action-executor
    image: {{ include "action-executor.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - serve
      - --bind
      - {{ printf "%s:%d" .Values.bindAddress (int .Values.containerPort) | quote }}
      {{- if not (include "action-executor.authenticates" .) }}
      - --insecure-open
      {{- end }}
      {{- if eq .Values.server.engine "tiny-http" }}
      - --engine
      - tiny-http
      {{- end }}
      {{- with .Values.extraArgs }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    env:
      - name: ACTION_EXECUTOR_POLICY
        value: /etc/action-executor/policy/policy.yaml
      {{- if .Values.authentication.tokenReview.enabled }}
      - name: ACTION_EXECUTOR_TOKEN_AUDIENCE
        value: {{ .Values.authentication.tokenReview.audience | quote }}
      {{- end }}
      {{- with .Values.impersonation }}
      {{- if .enabled }}
      - name: ACTION_EXECUTOR_IMPERSONATE
        value: callers
      {{- with .groups }}
      - name: ACTION_EXECUTOR_IMPERSONATE_GROUPS
        value: {{ join "," . | quote }}
      {{- end }}
      {{- with .accounts }}
      - name: ACTION_EXECUTOR_IMPERSONATE_ACCOUNTS
        value: {{ join "," . | quote }}
      {{- end }}
      {{- with .extra }}
      - name: ACTION_EXECUTOR_IMPERSONATE_EXTRA
        value: {{ join "," . | quote }}
      {{- end }}
      {{- end }}
      {{- end }}
      {{- if $keys }}
      - name: ACTION_EXECUTOR_KEYS
        value: /etc/action-executor/keys/keys.yaml
      {{- end }}
      {{- if .Values.clusters.existingSecret }}
      - name: ACTION_EXECUTOR_CLUSTERS
        value: /etc/action-executor/clusters/clusters.yaml
      {{- end }}
      {{- if .Values.tls.enabled }}
      - name: ACTION_EXECUTOR_TLS_CERTIFICATE
        value: /etc/action-executor/tls/tls.crt
      - name: ACTION_EXECUTOR_TLS_KEY
        value: /etc/action-executor/tls/tls.key
      {{- end }}
      {{- if .Values.tls.clientCaSecret }}
      - name: ACTION_EXECUTOR_TLS_CLIENT_CA
        value: /etc/action-executor/client-ca/ca.crt
      {{- end }}
      {{- with .Values.hosts }}
      - name: ACTION_EXECUTOR_HOSTS
        value: {{ join "," . | quote }}
      {{- end }}
      - name: ACTION_EXECUTOR_CALLER_RATE
        value: {{ $settings.callerRate | int | quote }}
      - name: ACTION_EXECUTOR_CALLER_BURST
        value: {{ $settings.callerBurst | int | quote }}
      - name: ACTION_EXECUTOR_LOG
        value: {{ $settings.log | quote }}
      - name: ACTION_EXECUTOR_DEADLINE_SECONDS
        value: {{ $settings.deadlineSeconds | int | quote }}
      - name: ACTION_EXECUTOR_MAX_ACTIONS
        value: {{ $settings.maxActions | int | quote }}
      - name: ACTION_EXECUTOR_PEER_SHARE
        value: {{ ternary 100 ($settings.peerShare | int) $knative | quote }}
      - name: ACTION_EXECUTOR_REPLAY_WINDOW_SECONDS
        value: {{ $settings.replayWindowSeconds | int | quote }}
      {{- if not $knative }}
      # A drain of the node on which the pod runs evicts it last.
      - name: POD_NAME
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      - name: NODE_NAME
        valueFrom:
          fieldRef:
            fieldPath: spec.nodeName
      {{- end }}
      {{- if .Values.receipts.keySecret }}
      - name: ACTION_EXECUTOR_RECEIPT_KEY
        value: /etc/action-executor/receipts/receipt.pem
      {{- if .Values.receipts.volume }}
      - name: ACTION_EXECUTOR_RECEIPTS
        value: /var/lib/action-executor/receipts/{{ ternary "receipts" "$(POD_NAME)" $knative }}.jsonl
      {{- end }}
      {{- end }}
      {{- if or .Values.notifications.sink .Values.notifications.urlKey }}
      - name: ACTION_EXECUTOR_SINK
        {{- if .Values.notifications.urlKey }}
        valueFrom:
          secretKeyRef:
            name: {{ .Values.notifications.secretName }}
            key: {{ .Values.notifications.urlKey | quote }}
        {{- else }}
        value: {{ .Values.notifications.sink | quote }}
        {{- end }}
      - name: ACTION_EXECUTOR_SINK_SECRET
        value: /etc/action-executor/sink/secret
      {{- if .Values.notifications.allowHttp }}
      - name: ACTION_EXECUTOR_SINK_ALLOW_HTTP
        value: "true"
      {{- end }}
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      # Knative derives the protocol from this name.
      - name: {{ ternary "http1" (include "action-executor.scheme" .) $knative }}
        containerPort: {{ .Values.containerPort }}
        protocol: TCP
    {{- range $name := list "startupProbe" "livenessProbe" "readinessProbe" }}
    {{- with get $.Values $name }}
    {{ $name }}:
      {{- include "action-executor.probe" (dict "probe" . "port" $.Values.containerPort "secure" $.Values.tls.enabled) | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- if not $knative }}
    {{- with .Values.lifecycle }}
    lifecycle:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- with .Values.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .Values.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    volumeMounts:
      - name: token
        mountPath: /var/run/secrets/kubernetes.io/serviceaccount
        readOnly: true
      - name: policy
        mountPath: /etc/action-executor/policy
        readOnly: true
      {{- if $keys }}
      - name: keys
        mountPath: /etc/action-executor/keys
        readOnly: true
      {{- end }}
      {{- if .Values.clusters.existingSecret }}
      - name: clusters
        mountPath: /etc/action-executor/clusters
        readOnly: true
      {{- end }}
      {{- if .Values.tls.enabled }}
      - name: tls
        mountPath: /etc/action-executor/tls
        readOnly: true
      {{- end }}
      {{- if .Values.tls.clientCaSecret }}
      - name: client-ca
        mountPath: /etc/action-executor/client-ca
        readOnly: true
      {{- end }}
      {{- if .Values.receipts.keySecret }}
      - name: receipt-key
        mountPath: /etc/action-executor/receipts
        readOnly: true
      {{- if .Values.receipts.volume }}
      - name: receipts
        mountPath: /var/lib/action-executor/receipts
      {{- end }}
      {{- end }}
      {{- if or .Values.notifications.sink .Values.notifications.urlKey }}
      - name: sink
        mountPath: /etc/action-executor/sink
        readOnly: true
      {{- end }}
      {{- if eq .Values.server.engine "tiny-http" }}
      - name: tmp
        mountPath: /tmp
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with .Values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: token
    projected:
      sources:
        - serviceAccountToken:
            path: token
            expirationSeconds: 3600
        - configMap:
            name: kube-root-ca.crt
            items:
              - key: ca.crt
                path: ca.crt
        - downwardAPI:
            items:
              - path: namespace
                fieldRef:
                  fieldPath: metadata.namespace
  - name: policy
    configMap:
      name: {{ include "action-executor.fullname" . }}-policy
  {{- if $keys }}
  - name: keys
    secret:
      secretName: {{ $keys }}
      items:
        - key: {{ .Values.authentication.keys.secretKey }}
          path: keys.yaml
  {{- end }}
  {{- with .Values.clusters.existingSecret }}
  - name: clusters
    secret:
      secretName: {{ . }}
  {{- end }}
  {{- if .Values.tls.enabled }}
  - name: tls
    secret:
      secretName: {{ .Values.tls.secretName }}
      items:
        - key: tls.crt
          path: tls.crt
        - key: tls.key
          path: tls.key
  {{- end }}
  {{- with .Values.tls.clientCaSecret }}
  - name: client-ca
    secret:
      secretName: {{ . }}
      items:
        - key: ca.crt
          path: ca.crt
  {{- end }}
  {{- with .Values.receipts }}
  {{- if .keySecret }}
  - name: receipt-key
    secret:
      secretName: {{ .keySecret }}
      items:
        - key: {{ .secretKey }}
          path: receipt.pem
  {{- with .volume }}
  - name: receipts
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with .Values.notifications }}
  {{- if or .sink .urlKey }}
  - name: sink
    secret:
      secretName: {{ .secretName }}
      items:
        - key: {{ .secretKey }}
          path: secret
  {{- end }}
  {{- end }}
  {{- if eq .Values.server.engine "tiny-http" }}
  # The engine's private socket.
  - name: tmp
    emptyDir:
      medium: Memory
      sizeLimit: 16Mi
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
