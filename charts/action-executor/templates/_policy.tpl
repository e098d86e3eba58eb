{{/*
The mounted policy: the values, and the Lease of budget and kill switch.
*/}}
{{- define "action-executor.policy" -}}
{{- $policy := deepCopy (.Values.policy | default dict) }}
{{- $state := $policy.state | default dict }}
{{- if not $state.namespace }}
{{- $_ := set $state "namespace" .Release.Namespace }}
{{- end }}
{{- if not $state.name }}
{{- $_ := set $state "name" (include "action-executor.fullname" .) }}
{{- end }}
{{- $_ := set $policy "state" $state }}
{{- toYaml $policy }}
{{- end }}

{{/*
The policy with a default for every omitted field, validated.
*/}}
{{- define "action-executor.limits" -}}
{{- $policy := include "action-executor.policy" . | fromYaml }}
{{- range $section, $shipped := .Files.Get "files/policy.yaml" | fromYaml }}
{{- if kindIs "map" $shipped }}
{{- $given := get $policy $section | default dict }}
{{- range $field, $value := $shipped }}
{{- if not (hasKey $given $field) }}
{{- $_ := set $given $field $value }}
{{- end }}
{{- end }}
{{- $_ := set $policy $section $given }}
{{- else if not (hasKey $policy $section) }}
{{- $_ := set $policy $section $shipped }}
{{- end }}
{{- end }}
{{- $known := include "action-executor.rules" . | fromYaml }}
{{- range $list := list "allow" "require_approval" }}
{{- range $name := get $policy.actions $list }}
{{- if not (or (eq $name "*") (hasKey $known.actions $name) (hasKey $known.aliases $name)) }}
{{- fail (printf "policy.actions.%s: unknown action %q; known actions: %s; \"*\" for all." $list $name (keys $known.actions | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $list := list "allow" "deny" "require_approval" }}
{{- range $pattern := get $policy.namespaces $list }}
{{- if or (not (regexMatch "^[-a-z0-9*]{1,63}$" $pattern)) (gt (regexFindAll "[*]" $pattern -1 | len) 3) }}
{{- fail (printf "policy.namespaces.%s: %q is not the name of a namespace. A name can contain up to three *, each for any characters." $list $pattern) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $list := list "allow" "deny" "require_approval" }}
{{- range $pattern := get $policy.nodes $list }}
{{- if or (not (regexMatch "^[-.a-z0-9*]{1,253}$" $pattern)) (gt (regexFindAll "[*]" $pattern -1 | len) 3) }}
{{- fail (printf "policy.nodes.%s: %q is not the name of a node. A name can contain up to three *, each for any characters." $list $pattern) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $list := list "protected" "opt_in" }}
{{- range $label := get $policy.targets $list }}
{{- if not (regexMatch "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[-A-Za-z0-9_.]{1,63}(=[-A-Za-z0-9_.]{0,63})?$" $label) }}
{{- fail (printf "policy.targets.%s: %q is not a label of the form key or key=value." $list $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $policy }}
{{- end }}

{{/*
The program's RBAC rules.
*/}}
{{- define "action-executor.rules" -}}
{{- $rules := .Files.Get "files/rules.yaml" | fromYaml }}
{{- range list "aliases" "cluster" "integrations" }}
{{- if not (get $rules .) }}
{{- $_ := set $rules . dict }}
{{- end }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/*
The actions on objects of operators that the policy does not name, as a YAML list under "items".
*/}}
{{- define "action-executor.off" -}}
{{- $rules := include "action-executor.rules" . | fromYaml }}
{{- $integrations := (include "action-executor.limits" . | fromYaml).integrations }}
{{- $names := list }}
{{- range $action, $integration := $rules.integrations }}
{{- if not (has $integration $integrations) }}
{{- $names = append $names $action }}
{{- end }}
{{- end }}
{{- toYaml (dict "items" $names) }}
{{- end }}

{{/*
The allowed actions, as a YAML list under "items", without aliases, without those that change keys where none is
listed, and without those of integrations that are off.
*/}}
{{- define "action-executor.allowed" -}}
{{- $rules := include "action-executor.rules" . | fromYaml }}
{{- $limits := include "action-executor.limits" . | fromYaml }}
{{- $keys := dict "label" $limits.labels.allow "annotate" $limits.annotations.allow "taint" $limits.taints.allow "untaint" $limits.taints.allow }}
{{- $names := list }}
{{- range $limits.actions.allow }}
{{- if eq . "*" }}
{{- $names = concat $names (keys $rules.actions) }}
{{- else }}
{{- $names = append $names (get $rules.aliases . | default .) }}
{{- end }}
{{- end }}
{{- range $action, $listed := $keys }}
{{- if not $listed }}
{{- $names = without $names $action }}
{{- end }}
{{- end }}
{{- range (include "action-executor.off" . | fromYaml).items }}
{{- $names = without $names . }}
{{- end }}
{{- toYaml (dict "items" ($names | uniq | sortAlpha)) }}
{{- end }}

{{/*
Whether the policy requires approvals.
*/}}
{{- define "action-executor.requiresApproval" -}}
{{- $limits := include "action-executor.limits" . | fromYaml }}
{{- if or $limits.actions.require_approval $limits.namespaces.require_approval $limits.nodes.require_approval }}yes{{ end }}
{{- end }}

{{/*
The rules that the executor needs in each namespace of targets.
*/}}
{{- define "action-executor.roleRules" -}}
{{- $table := include "action-executor.rules" . | fromYaml }}
{{- $rules := list }}
{{- if not .Values.impersonation.enabled }}
{{- $rules = (include "action-executor.actionRules" . | fromYaml).items }}
{{- end }}
{{- if not (has $table.ledger $rules) }}
{{- $rules = append $rules $table.ledger }}
{{- end }}
{{- if include "action-executor.requiresApproval" . }}
{{- $rules = append $rules $table.approval }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/*
The rules of the allowed actions in a namespace, as a YAML list under "items".
*/}}
{{- define "action-executor.actionRules" -}}
{{- $table := include "action-executor.rules" . | fromYaml }}
{{- $rules := list }}
{{- range (include "action-executor.allowed" . | fromYaml).items }}
{{- range get $table.actions . }}
{{- if not (has . $rules) }}
{{- $rules = append $rules . }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml (dict "items" $rules) }}
{{- end }}

{{/*
Rules as those of constrained impersonation (KEP-5284).
*/}}
{{- define "action-executor.constrained" -}}
{{- $constrained := list }}
{{- range . | uniq }}
{{- $verbs := list }}
{{- range .verbs }}
{{- $verbs = append $verbs (printf "impersonate-on:user-info:%s" .) }}
{{- end }}
{{- $constrained = append $constrained (set (deepCopy .) "verbs" $verbs) }}
{{- end }}
{{- toYaml $constrained }}
{{- end }}

{{/*
The cluster-wide rules of the allowed actions on nodes, as a YAML list under "items".
*/}}
{{- define "action-executor.clusterRules" -}}
{{- $table := include "action-executor.rules" . | fromYaml }}
{{- $rules := list }}
{{- range (include "action-executor.allowed" . | fromYaml).items }}
{{- range get $table.cluster . | default list }}
{{- if not (has . $rules) }}
{{- $rules = append $rules . }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml (dict "items" $rules) }}
{{- end }}

{{/*
The rules for the namespace of the records of actions on nodes.
*/}}
{{- define "action-executor.recordRules" -}}
{{- $table := include "action-executor.rules" . | fromYaml }}
{{- $rules := list $table.ledger }}
{{- if include "action-executor.requiresApproval" . }}
{{- $rules = append $rules $table.approval }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/*
The rules for the Lease of budget and kill switch. RBAC cannot restrict "create" to a name.
*/}}
{{- define "action-executor.stateRules" -}}
{{- $limits := include "action-executor.limits" . | fromYaml }}
{{- $budget := (include "action-executor.rules" . | fromYaml).budget }}
- apiGroups: {{ toJson $budget.apiGroups }}
  resources: {{ toJson $budget.resources }}
  verbs: ["create"]
- apiGroups: {{ toJson $budget.apiGroups }}
  resources: {{ toJson $budget.resources }}
  verbs: {{ without $budget.verbs "create" | toJson }}
  resourceNames: [{{ $limits.state.name | quote }}]
{{- end }}

{{/*
CEL: at least one of these conditions is true; false if there are none.
*/}}
{{- define "action-executor.any" -}}
{{- if . }}({{ join ") || (" . }}){{ else }}false{{ end }}
{{- end }}

{{/*
CEL: the request's namespace matches one of these patterns.
*/}}
{{- define "action-executor.inNamespaces" -}}
{{- $conditions := list }}
{{- range . }}
{{- $conditions = append $conditions (printf "variables.requestNamespace.matches('^%s$')" (replace "*" ".*" .)) }}
{{- end }}
{{- include "action-executor.any" $conditions }}
{{- end }}

{{/*
CEL: the name of the request's node matches one of these patterns.
*/}}
{{- define "action-executor.onNodes" -}}
{{- $conditions := list }}
{{- range . }}
{{- $conditions = append $conditions (printf "variables.name.matches('^%s$')" (. | replace "." "[.]" | replace "*" ".*")) }}
{{- end }}
{{- include "action-executor.any" $conditions }}
{{- end }}

{{/*
CEL: the object has one of these labels.
*/}}
{{- define "action-executor.onTarget" -}}
{{- $conditions := list }}
{{- range . }}
{{- $parts := splitn "=" 2 . }}
{{- if contains "=" . }}
{{- $conditions = append $conditions (printf "('%s' in variables.labels && variables.labels['%s'] == '%s')" $parts._0 $parts._0 $parts._1) }}
{{- else }}
{{- $conditions = append $conditions (printf "'%s' in variables.labels" .) }}
{{- end }}
{{- end }}
{{- include "action-executor.any" $conditions }}
{{- end }}

{{/*
CEL: the request is a write that an allowed action needs. A simulation sends the same writes as dry runs.
*/}}
{{- define "action-executor.writes" -}}
{{- $limited := (include "action-executor.limits" . | fromYaml).simulation.limited }}
{{- $allowed := (include "action-executor.allowed" . | fromYaml).items }}
{{- $off := (include "action-executor.off" . | fromYaml).items }}
{{- $operations := dict "create" "CREATE" "patch" "UPDATE" "update" "UPDATE" "delete" "DELETE" }}
{{- $conditions := list }}
{{- $table := include "action-executor.rules" . | fromYaml }}
{{- range $action, $rules := $table.actions }}
{{- $isAllowed := has $action $allowed }}
{{- if or $isAllowed (not (or $limited (has $action $off))) }}
{{- range $rule := concat $rules (get $table.cluster $action | default list) }}
{{- range $group := $rule.apiGroups }}
{{- range $resource := $rule.resources }}
{{- $parts := splitn "/" 2 $resource }}
{{- range $verb := $rule.verbs }}
{{- with get $operations $verb }}
{{- $write := printf "request.resource.group == '%s' && request.resource.resource == '%s' && variables.subresource == '%s' && request.operation == '%s'" $group $parts._0 ($parts._1 | default "") . }}
{{- $conditions = append $conditions (ternary $write (printf "%s && variables.simulated" $write) $isAllowed) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- include "action-executor.any" $conditions }}
{{- end }}

{{/*
The name of the cluster-scoped objects of this account.
*/}}
{{- define "action-executor.clusterName" -}}
{{- printf "action-executor.%s.%s" .Release.Namespace (include "action-executor.serviceAccountName" .) }}
{{- end }}

{{/*
The resources that the admission policies exclude: records, budget, and reviews of itself and of its callers.
*/}}
{{- define "action-executor.excluded" -}}
{{- $excluded := list
  (list "" "events")
  (list "events.k8s.io" "events")
  (list "coordination.k8s.io" "leases")
  (list "authentication.k8s.io" "selfsubjectreviews")
  (list "authorization.k8s.io" "selfsubjectaccessreviews")
  (list "authorization.k8s.io" "selfsubjectrulesreviews")
  (list "authentication.k8s.io" "tokenreviews")
  (list "authorization.k8s.io" "subjectaccessreviews") }}
{{- range $excluded }}
- apiGroups: [{{ first . | quote }}]
  apiVersions: ["*"]
  operations: ["*"]
  resources: [{{ last . | quote }}]
{{- end }}
{{- end }}

{{/*
The common part of the three admission policies: the account that they apply to, and their variables.
*/}}
{{- define "action-executor.admissionSubject" -}}
matchConditions:
  - name: is-the-executor
    # Or in the name of a caller whom the account impersonates.
    {{- $user := printf "system:serviceaccount:%s:%s" .Release.Namespace (include "action-executor.serviceAccountName" .) }}
    {{- $extra := "request.userInfo.extra" }}
    {{- $key := "action-executor.dev/executor" }}
    expression: {{ printf "request.userInfo.username == '%s' || (has(%s) && '%s' in %s && '%s' in %s['%s'])" $user $extra $key $extra $user $extra $key | quote }}
variables:
  - name: labels
    expression: "oldObject == null || !has(oldObject.metadata.labels) ? dyn({}) : dyn(oldObject.metadata.labels)"
  - name: requestNamespace
    expression: "has(request.namespace) ? request.namespace : ''"
  - name: name
    expression: "has(request.name) ? request.name : ''"
  - name: subresource
    expression: "has(request.subResource) ? request.subResource : ''"
  - name: labelled
    expression: "oldObject != null && variables.subresource in ['', 'resize', 'status']"
  - name: simulated
    expression: "has(request.dryRun) && request.dryRun"
{{- end }}

{{/*
All resources except the excluded ones.
*/}}
{{- define "action-executor.admissionScope" -}}
matchConstraints:
  resourceRules:
    - apiGroups: ["*"]
      apiVersions: ["*"]
      operations: ["*"]
      resources: ["*/*"]
  excludeResourceRules:
    {{- include "action-executor.excluded" . | nindent 4 }}
{{- end }}

{{/*
One rule of an admission policy, from a list of its name and its CEL expression.
*/}}
{{- define "action-executor.validation" -}}
- expression: {{ last . | quote }}
  message: denied by {{ first . }} of the action-executor's policy
  reason: Forbidden
{{- end }}
