"""What a person does once in the portals of Microsoft: https://learn.microsoft.com/azure/bot-service/bot-service-quickstart-registration"""

STEPS = (
    "https://portal.azure.com: create an Azure Bot, Type of App: Single Tenant. "
    "Or: az bot create --resource-group GROUP --name NAME --app-type SingleTenant --appid {id} "
    "--tenant-id TENANT --endpoint {url}",
    "Configuration: copy Microsoft App ID into {app_id} and App Tenant ID into {tenant_id}; "
    "Manage Password, New client secret: copy its Value into {app_password}",
    "Configuration, Messaging endpoint: {url}",
    "Channels: add Microsoft Teams. Or: az bot msteams create --resource-group GROUP --name NAME",
    "https://dev.teams.microsoft.com/apps: New app; App features, Bot: enter {id}, "
    "with the scopes Personal, Team and Group Chat; for files in personal chats tick Upload and download files",
    "Publish, Download the app package; in Teams: Apps, Manage your apps, Upload an app",
)
