{{- define "plugin.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "plugin.fullname" -}}
{{- $name := include "plugin.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "plugin.namespace" -}}
{{ .Values.namespaceOverride | default .Release.Namespace }}
{{- end -}}

{{- define "plugin.podLabels" -}}
app.kubernetes.io/name: {{ include "plugin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- with .Values.selectorLabelsOverride }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Every DaemonSet of the chart selects by the same labels: pods have to be told apart by their owner. */}}
{{- define "plugin.selectorLabels" -}}
{{- if .Values.selectorLabelsOverride -}}
{{ toYaml .Values.selectorLabelsOverride }}
{{- else -}}
{{ include "plugin.podLabels" . }}
{{- end -}}
{{- end -}}

{{- define "plugin.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "plugin.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "plugin.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "v%s" .Chart.AppVersion) }}
{{- end -}}

{{/* Name of the ConfigMap with the configs, empty if there is none. */}}
{{- define "plugin.configMap" -}}
{{- if .Values.config.name -}}
{{ .Values.config.name }}
{{- else if .Values.config.map -}}
{{ include "plugin.fullname" . }}-configs
{{- end -}}
{{- end -}}

{{/* 'yes' if a node without the label gets a config: named by the user, or found by a fallback strategy. */}}
{{- define "plugin.hasDefault" -}}
{{- $config := .Values.config -}}
{{- if $config.default -}}yes
{{- else if and (has "named" $config.fallbackStrategies) (hasKey $config.map "default") -}}yes
{{- else if and (has "single" $config.fallbackStrategies) (eq (len $config.map) 1) -}}yes
{{- else if has "empty" $config.fallbackStrategies -}}yes
{{- end -}}
{{- end -}}

{{/* The checksum makes an upgrade that changes only configs roll the pods. */}}
{{- define "plugin.podAnnotations" -}}
{{- $annotations := deepCopy .Values.podAnnotations -}}
{{- if and .Values.config.map (not (hasKey $annotations "checksum/config")) -}}
{{- $_ := set $annotations "checksum/config" (include (print .Template.BasePath "/configmap.yml") . | sha256sum) -}}
{{- end -}}
{{- toYaml $annotations -}}
{{- end -}}

{{/* May any config use MIG? Then the containers need more rights and MIG's monitor devices. */}}
{{- define "plugin.mig" -}}
{{- if .Values.migStrategy -}}
{{- if ne .Values.migStrategy "none" }}yes{{ end -}}
{{- else if include "plugin.configMap" . -}}yes
{{- end -}}
{{- end -}}

{{- define "plugin.securityContext" -}}
{{- if .Values.securityContext -}}
{{ toYaml .Values.securityContext }}
{{- else if .Values.compatWithCPUManager -}}
privileged: true
{{- else if or (include "plugin.mig" .) (contains "volume-mounts" (.Values.deviceListStrategy | default "")) -}}
capabilities: {add: [SYS_ADMIN]}
{{- else -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}
{{- end -}}

{{/*
The helper that copies the node's config into place, once before the container starts or for ever beside it.
Arguments: root, name, once ("true"|"false"), process (whom to signal after a change).
*/}}
{{- define "plugin.configManager" -}}
- name: {{ .name }}
  image: {{ include "plugin.image" .root }}
  command: [config-manager]
  env:
    - {name: ONESHOT, value: {{ .once | quote }}}
    - {name: KUBECONFIG, value: ""}
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    - {name: NODE_LABEL, value: nvidia.com/device-plugin.config}
    - {name: CONFIG_FILE_SRCDIR, value: /available-configs}
    - {name: CONFIG_FILE_DST, value: /config/config.yaml}
    - {name: DEFAULT_CONFIG, value: {{ .root.Values.config.default | quote }}}
    - {name: FALLBACK_STRATEGIES, value: {{ join "," .root.Values.config.fallbackStrategies | quote }}}
    - {name: SEND_SIGNAL, value: {{ empty .process | ternary "false" "true" | quote }}}
    - {name: SIGNAL, value: {{ empty .process | ternary "" "1" | quote }}}
    - {name: PROCESS_TO_SIGNAL, value: {{ .process | default "" | quote }}}
  volumeMounts:
    - {name: available-configs, mountPath: /available-configs}
    - {name: config, mountPath: /config}
{{- end -}}

{{- define "plugin.configVolumes" -}}
- name: available-configs
  configMap: {name: {{ include "plugin.configMap" . }}}
- name: config
  emptyDir: {}
{{- end -}}

{{/* What all DaemonSets' pods share. Argument: root, selector (further node labels). */}}
{{- define "plugin.podSpec" -}}
serviceAccountName: {{ include "plugin.fullname" .root }}-service-account
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with merge (dict) (.selector | default dict) (.root.Values.nodeSelector | default dict) }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
