{{- define "labels" -}}
app.kubernetes.io/name: recapture
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "pod" -}}
automountServiceAccountToken: false
serviceAccountName: {{ .Values.serviceAccount.name }}
enableServiceLinks: false # or the variables of a Service called recapture-serve are taken for settings
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  fsGroup: 1000
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "container" -}}
image: {{ include "image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "weights-env" -}}
- {name: HF_HOME, value: /weights}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: hf-token, optional: true}}
{{- end }}

{{- define "settings-env" -}}
{{ include "weights-env" . }}
{{- if .Values.weights.pull }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
- {name: RECAPTURE_SERVE_DATA, value: /data}
{{- with .Values.data.objects }}
- {name: RECAPTURE_SERVE_OBJECTS, value: {{ . | quote }}}
{{- end }}
- {name: RECAPTURE_SERVE_HOST, value: 0.0.0.0}
- name: RECAPTURE_SERVE_DATABASE
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: database}}
{{- range $name, $value := .Values.settings }}
- name: RECAPTURE_SERVE_{{ $name | upper }}
  value: {{ if or (kindIs "map" $value) (kindIs "slice" $value) }}{{ $value | toJson | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "env-from" -}}
- secretRef: {name: {{ .Values.secret }}-objects, optional: true}
{{- end }}

{{- define "mounts" -}}
- {mountPath: /data, name: data}
- {mountPath: /weights, name: weights}
- {mountPath: /tmp, name: scratch}
- {mountPath: /home/ray/.cache, name: cache}
- {mountPath: /dev/shm, name: shm}
{{- end }}

{{- define "volumes" -}}
- name: data
{{- if or (eq .Values.mode "bulk") .Values.data.objects }}
  emptyDir: {sizeLimit: 200Gi} # everything is in the bucket
{{- else }}
  persistentVolumeClaim: {claimName: {{ .Values.data.existingClaim | default (printf "%s-data" .Release.Name) }}}
{{- end }}
- name: weights
  persistentVolumeClaim: {claimName: {{ .Values.weights.existingClaim | default (printf "%s-weights" .Release.Name) }}}
- {name: scratch, emptyDir: {sizeLimit: 50Gi}}
- {name: cache, emptyDir: {sizeLimit: 200Gi}} # this node's copy of the stages in use
- {name: shm, emptyDir: {medium: Memory, sizeLimit: 4Gi}}
{{- end }}

{{/* Fetches what is missing, goes on where a download broke off, and otherwise ends at once. */}}
{{- define "pull" -}}
{{- if .Values.weights.pull }}
initContainers:
  - name: weights
    {{- include "container" . | nindent 4 }}
    command: [sh, -ec]
    args:
      - |
        {{- range .Values.weights.pull }}
        recapture models pull {{ . }}
        {{- end }}
    env:
      {{- include "weights-env" . | nindent 6 }}
    resources:
      requests: {cpu: 100m, memory: 512Mi}
      limits: {cpu: "2", memory: 2Gi}
    volumeMounts:
      - {mountPath: /weights, name: weights}
      - {mountPath: /tmp, name: scratch}
{{- end }}
{{- end }}

{{- define "gpu-placement" -}}
{{- with .Values.gpu.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.gpu.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "gpu-resources" -}}
{{- $resources := deepCopy .Values.resources.renderer }}
{{- if gt (int .Values.gpu.count) 0 }}
{{- $_ := set $resources.requests .Values.gpu.resource (toString .Values.gpu.count) }}
{{- $_ := set $resources.limits .Values.gpu.resource (toString .Values.gpu.count) }}
{{- end }}
requests: {{ toJson $resources.requests }}
limits: {{ toJson $resources.limits }}
{{- end }}
